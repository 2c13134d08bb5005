# SPDX-License-Identifier: MIT
"""Text to token ids and back, over the tokenizer section of a ``.bte`` file.

Ids and texts equal those of the Hugging Face ``tokenizers`` library. The vocabulary is read where
it lies in the file, so a tokenizer costs a few hundred bytes of memory whatever its size.
"""

from __future__ import annotations

from bitnet_edge._engine import TextStream, TokenizerCore
from bitnet_edge.errors import TokenizerError

TYPE_CHECKING = False  # importing typing would cost the device 0.7 MB
if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

__all__ = ["StreamDecoder", "Tokenizer"]

_SPECIAL = 1  # flag of a token, see tokenizer_format.md


class Tokenizer:
    """A tokenizer section, ready for use. Any number of threads may share one.

    Parameters
    ----------
    section : buffer
        The section's bytes. They are verified, kept, and read in place.

    Raises
    ------
    FormatError
        When the section is malformed.
    """

    def __init__(self, section: Buffer) -> None:
        self._core = TokenizerCore(section)

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return self._core.vocab_size

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the model has one."""
        token = self._core.bos_id
        return None if token < 0 else token

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a generation."""
        return self._core.eos_ids

    @property
    def private_bytes(self) -> int:
        """Private memory that the tokenizer holds."""
        return self._core.private_bytes

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special_tokens: bool = True
    ) -> list[int]:
        """Turn text into token ids.

        Parameters
        ----------
        text : str
        add_special_tokens : bool
            Add the tokens the model expects around a text, such as BOS.
        parse_special_tokens : bool
            Turn special tokens that are spelled in the text into their ids. Pass False for text
            from someone who must not be able to write them. Other added tokens always match.

        Returns
        -------
        list of int

        Raises
        ------
        TokenizerError
            When the text holds a lone surrogate, which no UTF-8 can express.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"[tokenizer] text holds a lone surrogate (U+{ord(text[error.start]):04X}) "
                f"at index {error.start}"
            ) from error
        return self._core.encode(data, add_special_tokens, parse_special_tokens)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Turn token ids into text.

        Bytes that are not UTF-8 become U+FFFD, and ids without a token are left out.

        Parameters
        ----------
        ids : iterable of int
        skip_special_tokens : bool
            Leave out special tokens, such as BOS.

        Returns
        -------
        str

        Raises
        ------
        TokenizerError
            When an id is negative.
        """
        data = b"".join([self._token_bytes(token, skip_special_tokens) for token in ids])
        return data.decode(errors="replace")

    def _token_bytes(self, token: int, skip_special_tokens: bool) -> bytes:
        if token < 0:
            raise TokenizerError(f"[tokenizer] token ids are not negative, got {token}")
        if token >= self._core.vocab_size:
            return b""
        if skip_special_tokens and self._core.token_flags(token) & _SPECIAL:
            return b""
        return self._core.token_bytes(token)


class StreamDecoder:
    """Turns ids into text as they come, never showing half a character.

    The pieces, joined, equal ``tokenizer.decode`` of all ids.

    Parameters
    ----------
    tokenizer : Tokenizer
    skip_special_tokens : bool
        Leave out special tokens, such as EOS.

    Examples
    --------
    >>> decoder = StreamDecoder(tokenizer)
    >>> for token in ids:
    ...     print(decoder.push(token), end="", flush=True)
    >>> print(decoder.flush())
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._stream = TextStream(tokenizer._core, skip_special_tokens)

    def push(self, token: int) -> str:
        """Take the next id and return the text it completes, perhaps none.

        Parameters
        ----------
        token : int

        Returns
        -------
        str

        Raises
        ------
        TokenizerError
            When the id is negative.
        """
        return self._stream.push(token)

    def flush(self) -> str:
        """End the text: return U+FFFD for a character that was begun, and start anew.

        Returns
        -------
        str
        """
        return self._stream.flush()
