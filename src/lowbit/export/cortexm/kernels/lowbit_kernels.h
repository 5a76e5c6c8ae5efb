/* Kernels for networks on 8-bit integers: portable C99, no allocation, no floating point but at the edges.
 *
 * Activations are int8 with a zero point, weights int8 around zero with a scale an output channel, sums int32. Tensors lie channels last.
 * The arithmetic is that of tflite-micro's reference kernels, bit for bit. With LOWBIT_CMSIS_NN defined, convolutions, fully connected
 * layers, pools and sums call Arm's CMSIS-NN instead.
 *
 * Kernels return 0, or -1 where CMSIS-NN refused (the portable ones never do).
 */
#ifndef LOWBIT_KERNELS_H
#define LOWBIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__) || defined(__ARMCC_VERSION)
#define LOWBIT_ALIGNED(bytes) __attribute__((aligned(bytes)))
#else
#define LOWBIT_ALIGNED(bytes)
#endif

/* Axes of a tensor that is walked through; those that are not needed have 1 step. */
#define LOWBIT_AXES 6

/* How a window slides over an image. */
typedef struct {
  int32_t in_height, in_width, in_channels;
  int32_t out_height, out_width, out_channels;
  int32_t height, width;
  int32_t stride_height, stride_width;
  int32_t dilation_height, dilation_width;
  int32_t pad_top, pad_left;
} lowbit_window;

/* How sums become levels of the output: scaled by multiplier * 2^(shift - 31), moved by the zero point, held between low and high. */
typedef struct {
  const int32_t *multiplier;
  const int32_t *shift;
  int32_t zero_point;
  int32_t low, high;
} lowbit_scaling;

/* Weights: [out][height][width][in] of a convolution and its transpose, [height][width][out] of a depthwise one. */
typedef struct {
  lowbit_window window;
  int32_t input_zero_point;
  const int8_t *weights;
  const int32_t *bias; /* NULL where there is none */
  lowbit_scaling output;
} lowbit_convolution;

/* Weights [outputs][inputs]. `uniform`: all outputs have one multiplier. */
typedef struct {
  int32_t rows, inputs, outputs;
  int32_t input_zero_point;
  const int8_t *weights;
  const int32_t *bias;
  lowbit_scaling output;
  int32_t uniform;
} lowbit_dense;

typedef struct {
  lowbit_window window;
  int32_t low, high;
} lowbit_pool;

/* Walks through the output; a step of 0 repeats an operand. `sign` is -1 for a difference. */
typedef struct {
  int32_t extent[LOWBIT_AXES];
  int32_t step_a[LOWBIT_AXES], step_b[LOWBIT_AXES];
  int32_t zero_point_a, zero_point_b;
  int32_t multiplier_a, multiplier_b, shift_a, shift_b;
  int32_t sign;
  int32_t multiplier, shift, zero_point;
  int32_t low, high;
} lowbit_pair;

/* Every element from one place to another: transposes, slices, padding, concatenation. */
typedef struct {
  int32_t extent[LOWBIT_AXES];
  int32_t step_in[LOWBIT_AXES], step_out[LOWBIT_AXES];
  int32_t start_in, start_out;
} lowbit_move_plan;

typedef struct {
  int32_t kept[LOWBIT_AXES], step_kept[LOWBIT_AXES];
  int32_t reduced[LOWBIT_AXES], step_reduced[LOWBIT_AXES];
  int32_t count;
  int32_t input_zero_point;
  int32_t multiplier, shift, zero_point;
} lowbit_mean_plan;

/* For every row and column of the output: the nearest ones of the input; for `bilinear` two of them and 1024ths between. */
typedef struct {
  int32_t in_width, channels, out_height, out_width;
  const int16_t *rows, *rows_below, *row_parts;
  const int16_t *columns, *columns_right, *column_parts;
} lowbit_resize_plan;

/* exponentials[d]: of a level d below the row's highest, 31 bits after the point. */
typedef struct {
  int32_t rows, width;
  const int32_t *exponentials;
} lowbit_softmax_plan;

int lowbit_conv_2d(const lowbit_convolution *plan, const int8_t *input, int8_t *output);
int lowbit_depthwise_conv_2d(const lowbit_convolution *plan, const int8_t *input, int8_t *output);
int lowbit_transpose_conv(const lowbit_convolution *plan, const int8_t *input, int8_t *output);
int lowbit_fully_connected(const lowbit_dense *plan, const int8_t *input, int8_t *output);
int lowbit_average_pool(const lowbit_pool *plan, const int8_t *input, int8_t *output);
int lowbit_max_pool(const lowbit_pool *plan, const int8_t *input, int8_t *output);
int lowbit_add(const lowbit_pair *plan, const int8_t *a, const int8_t *b, int8_t *output);
int lowbit_mul(const lowbit_pair *plan, const int8_t *a, const int8_t *b, int8_t *output);
int lowbit_mean(const lowbit_mean_plan *plan, const int8_t *input, int8_t *output);
int lowbit_softmax(const lowbit_softmax_plan *plan, const int8_t *input, int8_t *output);
int lowbit_resize_nearest(const lowbit_resize_plan *plan, const int8_t *input, int8_t *output);
int lowbit_resize_bilinear(const lowbit_resize_plan *plan, const int8_t *input, int8_t *output);

int lowbit_move(const lowbit_move_plan *plan, const int8_t *input, int8_t *output);
int lowbit_fill(int8_t *output, int8_t value, int32_t count);
/* Any function of one level: table[level + 128]. */
int lowbit_table(const int8_t *table, const int8_t *input, int8_t *output, int32_t count);
int lowbit_quantize(float scale, int32_t zero_point, const float *input, int8_t *output, int32_t count);
int lowbit_dequantize(float scale, int32_t zero_point, const int8_t *input, float *output, int32_t count);

#ifdef __cplusplus
}
#endif

#endif
