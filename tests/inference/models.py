"""Small models with randomness of every kind, the plain loop that MC dropout is held against, and counters."""

from collections import Counter, OrderedDict
from types import SimpleNamespace

import segmentation_models_pytorch as smp
import timm.layers
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    timm.layers.DropPath,
    torchvision.ops.StochasticDepth,
)


def fixed(make, *arguments, **settings):
    """What ``make`` builds, with weights that do not depend on what ran before; in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **settings).eval()


def images(count=2, size=16, channels=3, dims=2):
    """A batch of images, always the same; image i is the same in a batch of any size."""
    shape = (channels, *[size] * dims)
    return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i in range(count)])


def names(count):
    return [f"image {i}" for i in range(count)]


class SmallNet(nn.Module):
    """Convolution, batch normalization with statistics of its own, dropout, and a head with large weights."""

    def __init__(self, classes=3, dropout=None, dims=2):
        super().__init__()
        conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
        self.stem = conv(3, 8, 3, padding=1)
        self.norm = norm(8)
        self.dropout = nn.Dropout2d(0.5) if dropout is None else dropout
        self.head = conv(8, classes, 1)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 1.5)
        self.head.weight.data.mul_(4)

    def forward(self, x):
        return self.head(self.dropout(torch.relu(self.norm(self.stem(x)))))


class FunctionalNet(SmallNet):
    """The same with a function in place of the dropout module."""

    def __init__(self, classes=3, p=0.5):
        super().__init__(classes, nn.Identity())
        self.p = p

    def forward(self, x):
        return self.head(F.dropout(torch.relu(self.norm(self.stem(x))), self.p, self.training))


class ResidualNet(SmallNet):
    """A residual branch that torchvision's StochasticDepth drops."""

    def __init__(self, classes=3):
        super().__init__(classes, torchvision.ops.StochasticDepth(0.5, "row"))
        self.branch = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(x + self.dropout(self.branch(x)))


class QuarterNet(SmallNet):
    """Logits at a quarter of the images' size, in an object with ``.logits`` as Hugging Face models give it."""

    def forward(self, x):
        return SimpleNamespace(logits=super().forward(F.avg_pool2d(x, 4)))


class DictNet(SmallNet):
    """Logits in a dict, beside auxiliary ones, as torchvision's models give them."""

    def forward(self, x):
        logits = super().forward(x)
        return OrderedDict(out=logits, aux=torch.zeros_like(logits))


class LabelNet(nn.Module):
    """Appends a logit of 0 before a one-logit model's: the same sigmoid as a softmax of two classes."""

    def __init__(self, one_logit):
        super().__init__()
        self.one_logit = one_logit

    def forward(self, x):
        logit = self.one_logit(x)
        return torch.cat((torch.zeros_like(logit), logit), 1)


class Raising(nn.Module):
    """A model that fails in forward number ``number``, counted from 0."""

    def __init__(self, number, model):
        super().__init__()
        self.number, self.model = number, model

    def forward(self, x):
        self.number -= 1
        logits = self.model(x)
        if self.number < 0:
            raise FloatingPointError("the model fails")
        return logits


def with_statistics(make, *arguments, **settings):
    """`fixed`, with running statistics of real activations, as if trained: without, most signals die on their way."""

    def made():
        model = make(*arguments, **settings).train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.momentum = 1.0
        with torch.no_grad():
            model(images(4, 64))
        return model

    return fixed(made)


def smp_fpn():
    return with_statistics(smp.FPN, "resnet18", encoder_weights=None, classes=3)


def torchvision_deeplab():
    make = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    return with_statistics(make, weights=None, weights_backbone=None, num_classes=3)


def segformer():
    return with_statistics(smp.Segformer, "mit_b0", encoder_weights=None, classes=3)


def convnext():
    return with_statistics(smp.FPN, "tu-convnext_atto", encoder_weights=None, classes=3, drop_path_rate=0.3)


# a model, the layers= to sample it with, and the size of its images
SAMPLED = {
    "smp FPN": (smp_fpn, "dropout", 64),
    "torchvision DeepLab": (torchvision_deeplab, "dropout", 64),
    "timm DropPath in mit_b0": (segformer, "dropout", 64),
    "timm DropPath in convnext": (convnext, "dropout", 64),
    "torchvision StochasticDepth": (lambda: fixed(ResidualNet), "dropout", 16),
    "a function under all": (lambda: fixed(FunctionalNet), "all", 16),
    "every module under all": (smp_fpn, "all", 64),
}


def switch_on(model, layers):
    """Training mode for what ``layers`` names, evaluation mode for everything else."""
    model.eval()
    for module in model.modules():
        if layers == "all":
            module.training = not isinstance(module, nn.modules.batchnorm._NormBase)
        else:
            module.training = isinstance(module, DROPOUTS)


def plain_loop(model, images, samples, layers):
    """The samples' probabilities, ``(S, B, C, *spatial)``, by what a person would write; the model is left on."""
    switch_on(model, layers)
    out = []
    for _ in range(samples):
        with torch.no_grad():
            logits = model(images)
            out.append(torch.softmax(logits["out"] if isinstance(logits, dict) else logits, 1))
    return torch.stack(out)


def flags(model):
    """The training flag of each module by name."""
    return {name: module.training for name, module in model.named_modules()}


def mix_flags(model):
    """Training flags that no call of ``train()`` or ``eval()`` gives."""
    for number, module in enumerate(model.modules()):
        module.training = number % 3 == 0


def hooks(model):
    """The number of hooks of each module."""
    return {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}


def tensors(model):
    """A copy of every tensor of the state dict."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_tensors(model, before):
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


class Count:
    """Counts the forwards of a model, and keeps the training flags that each saw."""

    def __init__(self, model):
        self.forwards, self.flags, self.sizes = 0, [], []
        model.register_forward_pre_hook(self._see)

    def _see(self, model, inputs):
        self.forwards += 1
        self.flags.append(flags(model))
        self.sizes.append(len(inputs[0]))


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes alive at any time in tensors that operations made inside the block."""

    def __init__(self):
        super().__init__()
        self.peak, self._alive = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: (ref, size) for key, (ref, size) in self._alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


class Operations(TorchDispatchMode):
    """How often each operation was called inside the block, by its name in torch."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))
