"""Makes flows for receive-side scaling: `flows.py TARGET SOURCE_ADDRESS...`

From 16 ports of each address, one UDP datagram and one TCP connection. Nothing listens at the target, whose reset
of the TCP connection shows that the flow passed there and back.
"""

import socket
import sys

target, sources = sys.argv[1], sys.argv[2:]
for source in sources:
    for port in range(20000, 20016):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((source, port))
            udp.sendto(b"flow", (target, 9))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            tcp.settimeout(30)
            tcp.bind((source, port))
            try:
                tcp.connect((target, 9))
                sys.exit(f"{target} port 9 listens; this needs a port where nothing does")
            except ConnectionRefusedError:
                pass
