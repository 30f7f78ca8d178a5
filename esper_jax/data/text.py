"""Text as sequences of characters: windows of a file, to predict the next.

The first characters are for training, those after them for validation, the
last for the test; no character is in two of these stretches.
"""

from pathlib import Path

import numpy as np

from esper_jax.data.splits import Split, Splits
from esper_jax.types import InputError

TEST_FRACTION = 0.1  # of the characters
SHIPPED = {"as_you_like_it": "Shakespeare's As You Like It (embedded)"}
_FOLDER = Path(__file__).parent / "texts"


def shipped(name: str) -> Path:
  """The file of a text that comes with the package, one of `SHIPPED`."""
  return _FOLDER / f"{name}.txt"


def read(path: Path, *, context: int, validation_fraction: float) -> Splits:
  """Reads a UTF-8 file.

  Tokens are places in the vocabulary: the distinct characters of the whole
  file, by code point. The label of a token is the one after it, so a window of
  `context` tokens is cut from `context` + 1 characters.

  Args:
    path: of the file.
    context: characters that are seen at once.
    validation_fraction: share of what the test leaves, above 0 and below 1.

  Returns:
    Three splits; tokens and labels are int32 [windows, context] both.

  Raises:
    InputError: the file is missing, no text in UTF-8, has fewer than two
      distinct characters, or is too short: training needs one window,
      validation and test two (a standard error needs two).
  """
  text = _decode(path)
  codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
  points, tokens = np.unique(codes, return_inverse=True)
  if len(points) < 2:
    raise InputError(
      f"data.source: '{path}' has {len(points)} distinct characters; give a"
      " text with two at least: set --config.data.source=text:PATH"
    )
  tokens = tokens.astype(np.int32)
  tested = round(TEST_FRACTION * len(tokens))
  held = round(validation_fraction * (len(tokens) - tested))
  trained = len(tokens) - tested - held
  parts = np.split(tokens, [trained, trained + held])
  names = ("training", "validation", "test")
  for name, part, least in zip(names, parts, (1, 2, 2), strict=True):
    if (len(part) - 1) // context < least:
      raise InputError(
        f"data.source: '{path}' has {len(tokens)} characters, of which"
        f" {len(part)} are for {name} (data.validation_fraction is"
        f" {validation_fraction}); it takes {least * context + 1} at least:"
        " give a longer text, or a smaller --config.data.context than"
        f" {context}"
      )
  train, validation, test = (_windows(part, context) for part in parts)
  shown = f"{len(tokens):,} characters, {len(points)} distinct"
  title = SHIPPED.get(path.stem) if path.parent == _FOLDER else f"text {path}"
  return Splits(
    train=train,
    test=test,
    num_classes=len(points),
    source=f"{title}, {shown}",
    validation=validation,
    vocabulary=points.tobytes().decode("utf-32-le"),
  )


def _decode(path: Path) -> str:
  try:
    content = path.read_bytes()
  except FileNotFoundError:
    raise InputError(
      f"data.source: there is no file '{path}': set"
      " --config.data.source=text:PATH to a text file"
    ) from None
  except OSError as error:
    raise InputError(
      f"data.source: '{path}' cannot be read ({error.strerror}): set"
      " --config.data.source=text:PATH to a text file"
    ) from None
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(
      f"data.source: '{path}' is no text in UTF-8 (byte {error.start} is"
      f" 0x{content[error.start]:02x}): convert it, or set"
      " --config.data.source=text:PATH to another file"
    ) from None


def _windows(tokens: np.ndarray, context: int) -> Split:
  """Windows side by side; what is left at the end is dropped."""
  count = (len(tokens) - 1) // context
  shape = (count, context)
  size = count * context
  return tokens[:size].reshape(shape), tokens[1 : size + 1].reshape(shape)
