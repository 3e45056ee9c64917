"""HTTP beside gRPC: the same methods, asked in JSON, in protobuf or with binary tensors, and a page for people.

Nothing is answered here: a request becomes the message of an RPC, the servicer that gRPC asks answers it within the
same interceptors, and what it answers or refuses is written in the form that the path has.
"""
