"""A pretend tape library behind a disk cache: tus writes, range reads, WLCG Tape REST, a library model one can believe.

It shares no code with the rest of the project, so a misunderstanding of ours cannot hide in both. From the wire
inwards: `server` (connections, slow and endless requests) → `gate` (who may enter, what is counted) → `tus`, `put`,
`files`, `webdav`, `tape_rest`, `admin`, `page` → `keeper` (applies decisions to disk) → `library` and `desk` (pure:
tapes, drives, cache; stage requests and pins) with `store` (SQLite) and `vault` (folders of bytes).
"""
