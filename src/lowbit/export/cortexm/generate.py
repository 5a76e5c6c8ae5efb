"""A prepared program as files: the model and its kernels in C, an example, what builds it. Pure: text from data."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from importlib import resources

from lowbit.export.cortexm.boards import BOARDS, STACK_BYTES, Board
from lowbit.export.cortexm.c_text import identifier, plain
from lowbit.export.cortexm.fit import Budget, lines
from lowbit.export.cortexm.model_text import ends, header, parameters, source
from lowbit.export.cortexm.prepared import Prepared, scratch_bytes
from lowbit.export.program.program import Program


def files(prepared: Prepared, budget: Budget, origin: str) -> dict[str, str]:
    """Everything that is written: path in the folder -> text.

    Args:
        prepared: What to write.
        budget: The board it is for, with the sizes that were asked for.
        origin: What it was made from, for comments.
    """
    program = prepared.program
    made = {
        "model.h": header(prepared, origin),
        "model.c": source(prepared, origin),
        "lowbit_kernels.h": _data("kernels", "lowbit_kernels.h"),
        "lowbit_kernels.c": "\n".join(_data("kernels", f"{name}.c") for name in ("base", *prepared.kernels)),
        "main.c": _example(prepared),
        "Makefile": _makefile(program, budget),
        "README.md": _readme(prepared, budget, origin),
    }
    made |= {f"board/{name}": _data("board", name) for name in ("io.h", "host.c", "semihosting.c", "startup.c", "memory.c")}
    made |= {f"board/{name}.ld": _linker(board, budget) for name, board in BOARDS.items()}
    if program.labels:
        made["labels.txt"] = "".join(f"{' '.join(label.split())}\n" for label in program.labels)
    return made


def _data(folder: str, name: str) -> str:
    return (resources.files("lowbit.export.cortexm") / folder / name).read_text(encoding="utf-8")


def _filled(template: str, words: Mapping[str, object]) -> str:
    for name, word in words.items():
        template = template.replace(f"@{name}@", str(word))
    return template


def _example(prepared: Prepared) -> str:
    """main.c: reads samples, runs the model, writes answers."""
    name = identifier(prepared.program.name)
    inputs = [end for end in ends(prepared) if end.given]
    outputs = [end for end in ends(prepared) if not end.given]
    sizes = {end.name: end.tensor.size_bytes for end in inputs}
    words = {
        "SAMPLE": " then ".join(f"{sizes[end.name]} bytes of {end.c_type} for '{plain(end.port.name)}'" for end in inputs),
        "BUFFERS": "\n".join(f"static {end.c_type} {end.name}[{end.elements}];" for end in outputs),
        "READ": "\n".join(f"  if (io_read(file, {name}_{end}(), {size}) != {size}) return 0;" for end, size in sizes.items()),
        "RUN": f"{name}_run({', '.join([*(f'{name}_{end}()' for end in sizes), *(end.name for end in outputs)])})",
        "WRITE": "\n".join(f"    if (io_write(to, {end.name}, (int32_t)sizeof {end.name}) != 0) return 5;" for end in outputs),
    }
    return _filled(_data("board", "main.c.in"), words)


def _makefile(program: Program, budget: Budget) -> str:
    words: dict[str, object] = {f"CPU_{board.name}": " ".join(board.flags) for board in BOARDS.values()}
    words |= {f"SCRATCH_{board.name}": scratch_bytes(program, vectors=board.vectors_unit) for board in BOARDS.values()}
    return _filled(_data("board", "Makefile.in"), {**words, "BOARD": budget.board.name})


def _linker(board: Board, budget: Budget) -> str:
    """The script of a board: with the sizes that were asked for, or all that it has where that is less."""
    words = {
        "BOARD": board.name,
        "CORE": board.core,
        "VECTORS": hex(board.vectors),
        "FLASH": hex(board.flash.origin),
        "FLASH_KB": min(budget.flash_kb, board.flash.kilobytes),
        "SRAM": hex(board.sram.origin),
        "SRAM_KB": min(budget.sram_kb, board.sram.kilobytes),
        "STACK": STACK_BYTES,
    }
    return _filled(_data("board", "link.ld.in"), words)


def _readme(prepared: Prepared, budget: Budget, origin: str) -> str:
    words = {
        "NAME": identifier(prepared.program.name),
        "ORIGIN": plain(origin),
        "PLAN": textwrap.indent("\n".join(lines(prepared, budget)), "    "),
        "BOARD": budget.board.name,
        "PARAMETERS": parameters(prepared),
    }
    return _filled(_data("board", "README.md.in"), words)
