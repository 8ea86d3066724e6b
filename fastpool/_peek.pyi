from typing import Final

QUIET: Final[int]
DATA: Final[int]
ENDED: Final[int]
HIDES_END: Final[bool]

def look(fd: int) -> int: ...
