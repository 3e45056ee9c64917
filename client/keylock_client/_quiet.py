"""Keep the C core of gRPC from writing to standard error; imported before gRPC is, which reads this once.

It reports each failed handshake in lines of its libraries. The errors of the client say the same in words, and a
program that has standard error to itself should find nothing else there. Whoever wants the lines sets the variable.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
