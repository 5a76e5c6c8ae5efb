"""Cortex-M: an integer program as C code for microcontrollers, its memory planned beforehand, tried in QEMU."""
