// The bundle's preprocessing: resizing is Pillow's (antialiased, in fixed point), the rest is float32. Pillow resizes some images along
// their height first, this always along their width: that moves a pixel by one level of 255 at most.

const PRECISION = 22;
const FILTERS = {
  bilinear: { support: 1, weigh: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weigh: (x) => {
      const d = Math.abs(x);
      if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
      return d < 2 ? -0.5 * (((d - 5) * d + 8) * d - 4) : 0;
    },
  },
};

/** An image as planes of 8 bits: { width, height, planes: [Uint8Array, ...] }. RGBA pixels -> the channels that the model takes. */
export function channelsOf({ width, height, data }, channels) {
  const count = width * height;
  if (channels === "grey") {
    const grey = new Uint8Array(count);
    for (let i = 0, p = 0; i < count; i += 1, p += 4) {
      grey[i] = (data[p] * 19595 + data[p + 1] * 38470 + data[p + 2] * 7471 + 0x8000) >>> 16;
    }
    return { width, height, planes: [grey] };
  }
  const order = channels === "bgr" ? [2, 1, 0] : [0, 1, 2];
  const planes = order.map((channel) => {
    const plane = new Uint8Array(count);
    for (let i = 0; i < count; i += 1) plane[i] = data[4 * i + channel];
    return plane;
  });
  return { width, height, planes };
}

/** Resized, cropped or letterboxed, as the steps say. */
export function placed(image, steps) {
  if (steps.letterbox) return letterboxed(image, steps.letterbox, steps.interpolation);
  const final = steps.crop ?? (Array.isArray(steps.resize) ? steps.resize : null);
  if (steps.keep_exact && final && final[0] === image.height && final[1] === image.width) return image;
  const [height, width] = resizedSize(image, steps.resize);
  const resized = resize(image, height, width, steps.interpolation);
  return steps.crop ? cropped(resized, steps.crop) : resized;
}

/** What goes into the model: Float32Array (or Uint8Array) of the steps' layout. */
export function standardised({ width, height, planes }, steps) {
  const count = width * height;
  const depth = planes.length;
  const out = steps.dtype === "uint8" ? new Uint8Array(count * depth) : new Float32Array(count * depth);
  const divisor = roundHalfEven(1 / steps.scale);
  const divides = divisor !== 0 && steps.scale === 1 / divisor;
  for (let channel = 0; channel < depth; channel += 1) {
    const mean = Math.fround(pick(steps.mean, channel, 0));
    const std = Math.fround(pick(steps.std, channel, 1));
    for (let i = 0; i < count; i += 1) {
      let value = planes[channel][i];
      value = Math.fround(divides ? value / divisor : value * Math.fround(steps.scale));
      value = Math.fround(Math.fround(value - mean) / std);
      out[steps.layout === "nhwc" ? i * depth + channel : channel * count + i] = value;
    }
  }
  return out;
}

/** RGBA pixels -> the model's numbers, and its shape with one sample. */
export function prepared(pixels, steps) {
  const image = placed(channelsOf(pixels, steps.channels), steps);
  const { width, height, planes } = image;
  const shapes = { nchw: [1, planes.length, height, width], nhwc: [1, height, width, planes.length], nhw: [1, height, width] };
  return { values: standardised(image, steps), shape: shapes[steps.layout] };
}

function pick(values, channel, otherwise) {
  if (!values || values.length === 0) return otherwise;
  return values.length === 1 ? values[0] : values[channel];
}

function resizedSize({ width, height }, wanted) {
  if (wanted === null || wanted === undefined) return [height, width];
  if (Array.isArray(wanted)) return wanted;
  const other = Math.floor((wanted * Math.max(width, height)) / Math.min(width, height));
  return height <= width ? [wanted, other] : [other, wanted];
}

function cropped({ width, height, planes }, [rows, columns]) {
  if (height < rows || width < columns) {
    throw new Error(`The image is ${height}×${width} where ${rows}×${columns} are cropped from it.`);
  }
  const top = roundHalfEven((height - rows) / 2);
  const left = roundHalfEven((width - columns) / 2);
  const cut = planes.map((plane) => {
    const out = new Uint8Array(rows * columns);
    for (let y = 0; y < rows; y += 1) {
      const start = (top + y) * width + left;
      out.set(plane.subarray(start, start + columns), y * columns);
    }
    return out;
  });
  return { width: columns, height: rows, planes: cut };
}

function letterboxed(image, { size, value, align }, interpolation) {
  const ratio = Math.min(size[0] / image.height, size[1] / image.width);
  const [height, width] = [image.height, image.width].map((side, axis) =>
    Math.min(size[axis], Math.max(1, roundHalfEven(side * ratio))),
  );
  const [top, left] = align === "corner" ? [0, 0] : [Math.floor((size[0] - height) / 2), Math.floor((size[1] - width) / 2)];
  const small = resize(image, height, width, interpolation);
  const planes = small.planes.map((plane) => {
    const out = new Uint8Array(size[0] * size[1]).fill(roundHalfEven(value));
    for (let y = 0; y < height; y += 1) out.set(plane.subarray(y * width, (y + 1) * width), (top + y) * size[1] + left);
    return out;
  });
  return { width: size[1], height: size[0], planes };
}

function resize(image, height, width, interpolation) {
  const { support, weigh } = FILTERS[interpolation];
  let { width: columns, height: rows, planes } = image;
  if (columns !== width) {
    const taps = coefficients(columns, width, support, weigh);
    planes = planes.map((plane) => along(plane, rows, columns, taps, (y, x) => y * columns + x, (y, x) => y * width + x));
    columns = width;
  }
  if (rows !== height) {
    const taps = coefficients(rows, height, support, weigh);
    planes = planes.map((plane) => along(plane, columns, rows, taps, (x, y) => y * columns + x, (x, y) => y * columns + x));
    rows = height;
  }
  return { width: columns, height: rows, planes };
}

function along(plane, lines, length, taps, from, to) {
  const out = new Uint8Array(lines * taps.length);
  for (let line = 0; line < lines; line += 1) {
    for (let place = 0; place < taps.length; place += 1) {
      const { first, weights } = taps[place];
      let sum = 1 << (PRECISION - 1);
      for (let tap = 0; tap < weights.length; tap += 1) sum += plane[from(line, first + tap)] * weights[tap];
      out[to(line, place)] = Math.min(255, Math.max(0, sum >> PRECISION));
    }
  }
  return out;
}

function coefficients(before, after, support, weigh) {
  const scale = before / after;
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  return Array.from({ length: after }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(before, Math.trunc(centre + reach + 0.5));
    const exact = Array.from({ length: end - first }, (_, tap) => weigh((tap + first - centre + 0.5) * (1 / stretch)));
    const total = exact.reduce((sum, weight) => sum + weight, 0);
    const weights = exact.map((weight) => {
      const share = (total === 0 ? weight : weight / total) * 2 ** PRECISION;
      return Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
    return { first, weights };
  });
}

function roundHalfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
