"""The bytes of one file become a grey picture, its measurements and its hashes.

In: bytes, of whoever. Out: pixels (uint8 or uint16), measurements by name, the file without its metadata; phantoms.
Holds: nothing here reads or writes the store; what is unfit is a `BadImage` with a reason code, whatever the bytes.
"""
