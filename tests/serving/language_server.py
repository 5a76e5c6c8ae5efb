"""`lowbit`, with the tests' engine of bigrams beside the others: python language_server.py SECONDS_A_STEP serve ..."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), *(str(TESTS / room) for room in ("serving", "bundle", "llm"))]

if __name__ == "__main__":
    from language_case import BigramEngine, install

    from lowbit.cli.main import main

    engine = BigramEngine()
    engine.step_s = float(sys.argv.pop(1))
    install(engine)
    main()
