"""Architectures of timm, pytorchcv, diffusers and MONAI, as small as they come."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from architectures import tasks
from architectures.registry import add
from architectures.tasks import CLASSES, Case


class _Named(type):
    """The kind of an empty class, whose attributes are their names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Empty(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (), {})


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes empty modules in place of a package that is not installed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Answer for torchvision alone."""
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Make an empty module."""
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave it empty."""


def of_timm(name: str, size: int, batch: int, **options: Any) -> Case:
    """Make a classifier of timm, which asks for torchvision though these models do not use it."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_StandIn())
    timm = importlib.import_module("timm")
    model = timm.create_model(name, num_classes=CLASSES, **options)
    return pictures(model, size, batch)


def pictures(model: nn.Module, size: int, batch: int = 8) -> Case:
    """Let a model tell the classes of images."""
    x, y = tasks.pictures(4 * batch, size)
    return Case(model, tasks.labels, x, y, batch=batch)


VIT = {"img_size": 32, "patch_size": 8, "depth": 4}
TIMM: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    ("mobilenetv3_small_050", 64, 8, {}),
    ("tinynet_e", 64, 8, {}),
    ("edgenext_xx_small", 64, 8, {}),
    ("convnextv2_atto", 32, 8, {}),
    ("efficientvit_b0", 64, 8, {}),
    ("pit_ti_224", 64, 8, {"img_size": 64}),
    ("resnet10t", 64, 8, {}),
    ("skresnet18", 48, 4, {}),
    ("semnasnet_075", 64, 4, {}),
    ("repghostnet_050", 64, 8, {}),
    ("vit_tiny_patch16_224", 32, 8, VIT),
    ("eva02_tiny_patch14_224", 32, 8, VIT),
    ("convit_tiny", 32, 8, VIT),
    ("cait_xxs24_224", 32, 8, VIT),
    ("resnetv2_18", 64, 4, {}),
)
# Module and function of pytorchcv.models, and the size that its pooling at the end asks for.
PYTORCHCV = (
    ("preresnet", "preresnet18_wd4", 64),
    ("mobilenetv3", "mobilenetv3_small_w7d20", 64),
    ("menet", "menet108_8x1_g3", 64),
    ("fdmobilenet", "fdmobilenet_wd4", 64),
    ("sepreresnet_cifar", "sepreresnet20_cifar10", 32),
    ("nin_cifar", "nin_cifar10", 32),
    ("diracnetv2", "diracnet18v2", 64),
)


def of_pytorchcv(module: str, function: str, size: int) -> Case:
    """Make a classifier of pytorchcv."""
    found = importlib.import_module(f"pytorchcv.models.{module}")
    if "cifar" in module:
        return pictures(getattr(found, function)(), size, 4)
    model = getattr(found, function)(num_classes=CLASSES, in_size=(size, size))
    if isinstance(getattr(model.features, "final_pool", None), nn.AvgPool2d):
        model.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return pictures(model, size, 4)


def list_all() -> None:
    """Put the classifiers of both libraries into the list."""
    for name, size, batch, options in TIMM:
        add(f"timm/{name}")(
            lambda n=name, s=size, b=batch, o=options: of_timm(n, s, b, **o)  # type: ignore[misc]
        )
    for row in PYTORCHCV:
        add(f"pytorchcv/{row[1]}")(lambda row=row: of_pytorchcv(*row))  # type: ignore[misc]


list_all()


# diffusers -----------------------------------------------------------------------------------


def noise(x: Tensor, name: str = "sample", **more: Any) -> tuple[dict[str, Any], Tensor]:
    """Return noisy images with their steps, and the noise to be found in them."""
    steps = torch.randint(0, 1000, (len(x),), generator=tasks.random(4))
    kept = torch.cos(1.57 * steps / 1000).reshape(-1, *[1] * (x.ndim - 1))
    drawn = torch.randn(x.shape, generator=tasks.random(5))
    mixed = kept * x + (1 - kept**2).sqrt() * drawn
    return {name: mixed, "timestep": steps} | more, drawn


def diffusers() -> Any:
    """Import diffusers."""
    return importlib.import_module("diffusers")


@add("diffusers/UNet2DConditionModel")
def conditioned() -> Case:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    blocks |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    sizes = {"block_out_channels": (16, 32), "cross_attention_dim": 16, "attention_head_dim": 8}
    sizes |= {"layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16}
    model = diffusers().UNet2DConditionModel(in_channels=3, out_channels=3, **sizes, **blocks)
    texts = torch.randn(32, 4, 16, generator=tasks.random(6))
    x, target = noise(tasks.pictures(32, 16)[0], encoder_hidden_states=texts)
    return Case(model, tasks.square, x, target, batch=8)


@add("diffusers/DiTTransformer2DModel")
def dit() -> Case:
    sizes = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 4, "sample_size": 16}
    sizes |= {"in_channels": 3, "patch_size": 4, "norm_num_groups": 1, "num_embeds_ada_norm": 1000}
    model = diffusers().DiTTransformer2DModel(out_channels=3, **sizes)
    pixels, classes = tasks.pictures(32, 16)
    x, target = noise(pixels, "hidden_states", class_labels=classes)
    return Case(model, tasks.square, x, target, batch=8)


@add("diffusers/UNet1DModel")
def lines() -> Case:
    blocks = {"down_block_types": ("DownBlock1D",) * 2, "up_block_types": ("UpBlock1D",) * 2}
    model = diffusers().UNet1DModel(
        sample_size=32, in_channels=2, out_channels=2, block_out_channels=(32, 32), **blocks
    )
    x, target = noise(tasks.waves(32, 32, 2).transpose(1, 2).contiguous())
    return Case(model, tasks.square, x, target, batch=8)


@add("diffusers/AutoencoderKL")
def variational() -> Case:
    sizes = {"block_out_channels": (16, 32), "norm_num_groups": 8, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    model = diffusers().AutoencoderKL(
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16, **sizes, **blocks
    )
    x = tasks.pictures(32, 16)[0]
    return Case(model, tasks.square, x, x, batch=8)


@add("diffusers/PriorTransformer")
def prior() -> Case:
    model = diffusers().PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=12,
        num_layers=3,
        embedding_dim=16,
        num_embeddings=4,
        additional_embeddings=4,
    )
    drawn = torch.randn(32, 16, generator=tasks.random(6))
    more = {"proj_embedding": drawn, "encoder_hidden_states": drawn[:, None].repeat(1, 4, 1)}
    x, _ = noise(drawn, "hidden_states", **more)
    return Case(model, lambda out, y: tasks.square(out.predicted_image_embedding, y), x, drawn)


# MONAI ---------------------------------------------------------------------------------------


def monai() -> Any:
    """Import the networks of MONAI."""
    return importlib.import_module("monai.networks.nets")


def segmented(model: nn.Module, size: int, dims: int = 2) -> Case:
    """Let a model find discs."""
    x, masks = tasks.discs(16, size, dims=dims)
    return Case(model, tasks.overlap, x, masks, batch=4)


@add("monai/SegResNet")
def segresnet() -> Case:
    return segmented(monai().SegResNet(2, 8, 1, 1, blocks_down=(1, 1, 2), blocks_up=(1, 1)), 32)


@add("monai/BasicUNet")
def basic() -> Case:
    return segmented(monai().BasicUNet(2, 1, 1, (8, 8, 16, 16, 24, 8)), 32)


@add("monai/BasicUNetPlusPlus")
def plus() -> Case:
    return segmented(monai().BasicUNetPlusPlus(2, 1, 1, features=(8, 8, 16, 16, 24, 8)), 32)


@add("monai/ResidualUNet_3d")
def residual() -> Case:
    return segmented(monai().UNet(3, 1, 1, (8, 16, 24), (2, 2), num_res_units=2), 16, dims=3)


@add("monai/ViT")
def vit() -> Case:
    sizes = {"hidden_size": 48, "mlp_dim": 96, "num_layers": 4, "num_heads": 4}
    options = {"classification": True, "num_classes": CLASSES, "post_activation": "none"}
    return pictures(monai().ViT(3, (32, 32), (8, 8), spatial_dims=2, **sizes, **options), 32)


@add("monai/Regressor")
def regressor() -> Case:
    x, masks = tasks.discs(64, 32)
    left = 8 * masks[..., :16].mean((2, 3)) - 2
    model = monai().Regressor((1, 32, 32), (1,), (8, 16, 32), (2, 2, 2))
    return Case(model, tasks.square, x, left)


@add("monai/ResNet_3d")
def resnet3d() -> Case:
    sizes = ("basic", (1, 1, 1, 1), (8, 16, 24, 32))
    model = monai().ResNet(*sizes, n_input_channels=1, num_classes=CLASSES, conv1_t_size=3)
    x, y = tasks.pictures(32, 16, 1, dims=3)
    return Case(model, tasks.labels, x, y, batch=4)


@add("monai/FullyConnectedNet")
def connected() -> Case:
    x, y = tasks.rows(128, 8)
    widths: Sequence[int] = (48, 48, 48)
    model = monai().FullyConnectedNet(8, CLASSES, widths, dropout=0.1)
    return Case(model, tasks.labels, x, y, batch=32, rate=3e-3)
