"""Runtimes that load and run artifacts, behind one protocol; and what the hardware can do."""

from lowbit.runtimes.base import Runtime as Runtime
from lowbit.runtimes.base import Session as Session
from lowbit.runtimes.hardware import Hardware as Hardware
from lowbit.runtimes.hardware import probe as probe
from lowbit.runtimes.registry import available as available
from lowbit.runtimes.registry import get as get
