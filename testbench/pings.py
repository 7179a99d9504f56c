"""Pings an address at random gaps and prints how many were answered: pings.py ADDRESS COUNT LONGEST_GAP_MS

Gaps of every length are equally likely from 10 us up: as many between 10 and 100 us as between 100 ms and 1 s.
"""

import os
import random
import socket
import struct
import sys
import time

ECHO_REQUEST, ECHO_REPLY = 8, 0
REPLY_LIMIT_S = 10
SHORTEST_GAP_S = 10e-6

address, count, longest_gap_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000


def checksum(data):
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo(sequence):
    """Sends one request; the seconds until its answer, or None."""
    parts = (os.getpid() & 0xFFFF, sequence)
    body = struct.pack("!HH", *parts) + bytes(56)
    head = struct.pack("!BBH", ECHO_REQUEST, 0, checksum(struct.pack("!BBH", ECHO_REQUEST, 0, 0) + body))
    began = time.monotonic()
    raw.sendto(head + body, (address, 0))
    while (left := began + REPLY_LIMIT_S - time.monotonic()) > 0:
        raw.settimeout(left)
        try:
            packet = raw.recv(2048)
        except TimeoutError:
            break
        icmp = packet[(packet[0] & 15) * 4 :]
        if icmp[0] == ECHO_REPLY and struct.unpack("!HH", icmp[4:8]) == parts:
            return time.monotonic() - began
    return None


raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
times = []
for number in range(count):
    time.sleep(SHORTEST_GAP_S * (longest_gap_s / SHORTEST_GAP_S) ** random.random())
    took = echo(number)
    if took is not None:
        times.append(took * 1000)
times.sort()
middle, most = (times[len(times) // 2], times[-1]) if times else (0, 0)
print(f"{len(times)} of {count} answered, median {middle:.2f} ms, longest {most:.2f} ms")
sys.exit(len(times) != count)
