"""Which implementation, fan-in and group size to use, from recorded runs and the byte model. Imports no torch.

`evidence` reads records and estimates a time from near ones, `memory` says what fits, `answer` chooses and says why.
"""
