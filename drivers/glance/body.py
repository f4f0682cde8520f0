"""The data of an upload as the body of a request."""

from collections.abc import Iterable, Iterator

from drivers.glance.connections import SourceFailed
from drivers.reading import Measured


class Body:
    """The body of an upload.

    The last piece is held back until the source has ended well, so that the server never has the whole of an upload
    that fails here. `sent` is how many bytes the server can have at most.
    """

    def __init__(self, measured: Measured, size: int | None) -> None:
        self.size = size
        self.sent = 0
        self.failure: BaseException | None = None
        self._measured = measured

    @property
    def data(self) -> Iterable[bytes]:
        """What is to be sent: with its length if that is known, as not every server in between takes it without."""
        return _Sized(self._pieces(), self.size) if self.size else self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        held = b""
        try:
            for piece in self._measured:
                if held:
                    self.sent += len(held)
                    yield held
                held = piece
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            raise SourceFailed from error
        if held:
            self.sent += len(held)
            yield held


class _Sized:
    """Pieces whose length is known together."""

    def __init__(self, pieces: Iterator[bytes], size: int) -> None:
        self._pieces = pieces
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces
