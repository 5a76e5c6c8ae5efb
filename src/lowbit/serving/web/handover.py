"""Leaving a port without losing a connection, alone or to a successor.

A listening socket that is closed takes with it what it has not accepted yet: those clients see a reset. So new connections are turned away
first, in the kernel: to the successor on a shared port, else nowhere (a client's next attempt, a second later, is refused cleanly). Then
what is left is accepted, then the socket is closed. Both are classic BPF programs of one instruction (Linux, socket(7)).
"""

from __future__ import annotations

import ctypes
import socket
import struct

ATTACH_FILTER, ATTACH_REUSEPORT_CBPF = 26, 51
_RETURN_CONSTANT = 0x06
NOTHING, SECOND = 0, 1


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def give_away(listening: socket.socket) -> bool:
    """Sends new connections on a shared port to whoever began to listen second: to the successor, where the oldest leaves.

    Where there is no second one the kernel ignores the choice. The oldest listener has the number 0, and numbers close up behind one that
    leaves, so this is for servers that follow each other, not for many beside each other.

    Returns:
        False where this system cannot.
    """
    return _attach(listening, ATTACH_REUSEPORT_CBPF, SECOND)


def turn_away(listening: socket.socket) -> bool:
    """Drops what would open new connections; those that are open are not touched.

    Returns:
        False where this system cannot.
    """
    return _attach(listening, ATTACH_FILTER, NOTHING)


def _attach(listening: socket.socket, option: int, answer: int) -> bool:
    code = ctypes.create_string_buffer(struct.pack("HBBI", _RETURN_CONSTANT, 0, 0, answer))
    try:
        listening.setsockopt(socket.SOL_SOCKET, option, bytes(_Program(1, ctypes.addressof(code))))
    except OSError:
        return False
    return True
