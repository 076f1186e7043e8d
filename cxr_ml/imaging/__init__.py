"""The bytes of one file become a grey picture, its measurements and its hashes.

In: bytes from any source. Out: pixels (uint8), measurements by name, the file without its metadata; phantoms.
Always: nothing here reads or writes the store; an unfit file is a `BadImage` with a reason code, whatever its bytes.
"""
