"""The bytes of one file become a grey picture, its measurements and its hashes.

In: bytes, of whoever. Out: pixels (uint8 or uint16), `measure.Measured`, `white_box`, `borders`; phantoms for tests.
Holds: nothing here reads or writes the store; what cannot be decoded has a reason code, and never an exception.
"""
