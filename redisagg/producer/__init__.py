"""The producer: gathers what its callers add into few calls of the script `add`.

`calls` says what goes into a call, `lanes` numbers the calls so that a repeated one is carried out
once, `outcomes` who is told what; `threads` and `aio` do the waiting.

Group commit, as databases do it for their log (Gray and Reuter, Transaction Processing, 1993):
what comes while a call is on the wire goes out in the next one. A lone caller waits for nobody.
"""
