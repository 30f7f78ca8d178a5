"""The same networks in plain PyTorch. Import it only where PyTorch is there.

PyTorch has no types here: it is no dependency of the project.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks._peers_jax import (
  ALPHA,
  CLASSES,
  CNN,
  DECAY,
  MOMENTUM,
  RATE,
  Block,
  timed,
)
from esper_jax.data.splits import Dataset
from esper_jax.types import PyTree
from esper_jax.urza.kernels.plain import groups_of

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn
F: Any = torch.nn.functional

NCHW, NHWC = "contiguous", "channels_last"
LAYOUTS = (NCHW, NHWC)
PADDING = 4  # of a random crop, pixels
_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


class Conv(nn.Conv2d):
  """A square convolution that pads by half its size.

  At stride 2 Flax's "SAME" pads an even image at its end only. Both cost the
  same; `exact` pads as Flax does, in a pass of its own, to compare values.
  """

  exact = False

  def forward(self, x: Any) -> Any:
    if self.exact and self.stride[0] == 2 and self.kernel_size[0] == 3:
      return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, stride=2)
    return super().forward(x)


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> Any:
  """A convolution without bias."""
  return Conv(inputs, outputs, size, stride, size // 2, bias=False)


class Seed(nn.Module):
  """x + alpha F(x), F the blueprint conv3x3."""

  def __init__(self, channels: int):
    super().__init__()
    self.conv1 = conv(channels, channels, 3)
    self.norm = nn.GroupNorm(groups_of(channels), channels)
    self.conv2 = conv(channels, channels, 3)

  def forward(self, x: Any) -> Any:
    return x + ALPHA * self.conv2(F.relu(self.norm(self.conv1(x))))


class BasicBlock(nn.Module):
  """Two 3x3 convolutions beside a shortcut."""

  def __init__(self, inputs: int, outputs: int, stride: int):
    super().__init__()
    self.conv1 = conv(inputs, outputs, 3, stride)
    self.norm1 = nn.BatchNorm2d(outputs)
    self.conv2 = conv(outputs, outputs, 3)
    self.norm2 = nn.BatchNorm2d(outputs)
    self.shortcut = stride != 1 or inputs != outputs
    if self.shortcut:
      self.conv3 = conv(inputs, outputs, 1, stride)
      self.norm3 = nn.BatchNorm2d(outputs)

  def forward(self, x: Any) -> Any:
    y = F.relu(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    if self.shortcut:
      x = self.norm3(self.conv3(x))
    return F.relu(x + y)


class ResNet(nn.Module):
  """`esper_jax.hosts.resnet.ResNet`, with a seed after one of its blocks."""

  def __init__(self, blocks: Sequence[int], width: int, slot: str):
    super().__init__()
    self.stem = conv(3, width, 3)
    self.stem_norm = nn.BatchNorm2d(width)
    layers, inputs = {}, width
    for s, count in enumerate(blocks):
      for b in range(count):
        outputs, stride = width * 2**s, 2 if s > 0 and b == 0 else 1
        layers[f"block{s + 1}_{b + 1}"] = BasicBlock(inputs, outputs, stride)
        inputs = outputs
        if slot == f"slot{s + 1}_{b + 1}":
          layers[slot] = Seed(inputs)
    self.order = list(layers)
    for name, layer in layers.items():
      self.add_module(name, layer)
    self.head = nn.Linear(inputs, CLASSES)

  def forward(self, x: Any) -> Any:
    x = F.relu(self.stem_norm(self.stem(x)))
    for name in self.order:
      x = getattr(self, name)(x)
    return self.head(x.mean(dim=(2, 3)))


class PooledCNN(nn.Module):
  """`_peers_jax.PooledCNN`, with a seed after one of its poolings."""

  def __init__(self, width: int, slot: str):
    super().__init__()
    inputs = 3
    for n in range(1, 4):
      outputs = width * 2 ** (n - 1)
      self.add_module(f"conv{n}", nn.Conv2d(inputs, outputs, 3, padding=1))
      if slot == f"slot{n}":
        self.add_module(slot, Seed(outputs))
      inputs = outputs
    self.slot = slot
    self.head = nn.Linear(inputs, CLASSES)

  def forward(self, x: Any) -> Any:
    for n in range(1, 4):
      x = F.max_pool2d(F.relu(getattr(self, f"conv{n}")(x)), 2)
      if self.slot == f"slot{n}":
        x = getattr(self, self.slot)(x)
    return self.head(x.mean(dim=(2, 3)))


def make_model(
  network: str, groups: Mapping[str, PyTree], *, exact: bool
) -> Any:
  """A network with the parameters of one of ours.

  Args:
    network: "cnn" or the name of a ResNet.
    groups: parameters by optimizer group, see `surgery.group_params`; at most
      one seed.
    exact: see `Conv`.
  """
  host = groups["host"]
  slot = next((g.partition("/")[0] for g in groups if g != "host"), "")
  if network == CNN:
    model = PooledCNN(host["conv1"]["kernel"].shape[-1], slot)
  else:
    blocks: dict[str, int] = {}
    for name in host:
      if name.startswith("block"):
        stage = name.removeprefix("block").partition("_")[0]
        blocks[stage] = blocks.get(stage, 0) + 1
    counts = [blocks[stage] for stage in sorted(blocks)]
    model = ResNet(counts, host["stem"]["kernel"].shape[-1], slot)
  for module in model.modules():
    if isinstance(module, Conv):
      module.exact = exact
  weights = dict(_named(host))
  for group, params in groups.items():
    if group != "host":
      weights |= _named(params["branch"], f"{slot}.")
  missing, unknown = model.load_state_dict(weights, strict=False)
  missing = [n for n in missing if "running" not in n and "batches" not in n]
  assert not missing and not unknown, (missing, unknown)
  return model.train()


def _named(tree: PyTree, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Flax's parameters under PyTorch's names, in PyTorch's order of axes."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    parts = [str(entry.key) for entry in path]
    if prefix and "norm" in parts:  # a seed keeps its norm below conv1
      parts = parts[parts.index("norm") :]
    value = np.array(leaf)
    value = value.transpose((3, 2, 0, 1)) if value.ndim == 4 else value.T
    name = ".".join([*parts[:-1], _NAMES[parts[-1]]])
    yield prefix + name, torch.from_numpy(value.copy())


def block(
  model: Any,
  data: Dataset,
  *,
  batch: int,
  layout: str,
  device: str = "cpu",
  precision: str = "float32",
  augmented: bool = False,
  compiled: str = "",
) -> Block:
  """A plain training loop; SGD with momentum and our decoupled decay.

  Args:
    model: see `make_model`.
    data: its images stay on the device as bytes.
    batch: examples of a step.
    layout: one of LAYOUTS.
    device: "cpu" or "cuda".
    precision: "float32", or "bfloat16" for autocast.
    augmented: whether images are cropped and flipped at random.
    compiled: mode of `torch.compile`; "" runs eagerly.
  """
  form = torch.channels_last if layout == NHWC else torch.contiguous_format
  model = model.to(device, memory_format=form)
  images = torch.from_numpy(data.train_images).to(device)
  images = images.permute(0, 3, 1, 2).contiguous(memory_format=form)
  labels = torch.from_numpy(data.train_labels).to(device, torch.int64)
  shift = torch.tensor(data.mean, device=device).reshape(1, 3, 1, 1)
  scale = torch.tensor(data.std, device=device).reshape(1, 3, 1, 1)
  parameters = list(model.parameters())
  decayed = [p for p in parameters if p.ndim > 1]
  optimizer = torch.optim.SGD(
    parameters, RATE, MOMENTUM, fused=device != "cpu" or None
  )
  low = precision != "float32"
  total, start = torch.zeros((), device=device), 0

  def loss_of(x: Any, y: Any) -> Any:
    x = (x.float() * (1 / 255) - shift) / scale
    x = augment(x) if augmented else x
    x = x.contiguous(memory_format=form)
    with torch.autocast(device, torch.bfloat16, enabled=low):
      logits = model(x)
    return F.cross_entropy(logits.float(), y)

  if compiled:
    loss_of = torch.compile(loss_of, mode=compiled)

  def steps(count: int) -> None:
    nonlocal start
    for _ in range(count):
      rows = torch.arange(start, start + batch, device=device) % len(labels)
      start = (start + batch) % len(labels)
      optimizer.zero_grad(set_to_none=True)
      loss = loss_of(images[rows], labels[rows])
      loss.backward()
      with torch.no_grad():
        torch._foreach_mul_(decayed, 1 - RATE * DECAY)
        total.add_(loss.detach())
      optimizer.step()
    if device != "cpu":
      torch.cuda.synchronize()

  def loss(count: int) -> float:
    total.zero_()
    steps(count)
    return float(total) / count

  return Block(timed(steps), loss)


def augment(x: Any) -> Any:
  """Crops with a padding of PADDING and flips, each image on its own.

  Args:
    x: float [batch, channels, height, width].

  Returns:
    As x, in the layout channels_last.
  """
  b, _, h, w = x.shape
  padded = F.pad(x, (PADDING,) * 4)
  corner = torch.randint(0, 2 * PADDING + 1, (2, b, 1, 1), device=x.device)
  coin = torch.rand((b, 1, 1), device=x.device) < 0.5
  across = torch.arange(w, device=x.device).reshape(1, 1, w)
  across = torch.where(coin, w - 1 - across, across) + corner[1]
  down = torch.arange(h, device=x.device).reshape(1, h, 1) + corner[0]
  image = torch.arange(b, device=x.device).reshape(b, 1, 1)
  return padded.permute(0, 2, 3, 1)[image, down, across].permute(0, 3, 1, 2)
