"""Published Flax models, unchanged and tiny: how each is called, its loss and its credit sites.

Each function imports its package itself, and skips the test that asks for it where the extra
`published` is not installed. Nothing here comes from a hub: parameters are drawn.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax
import pytest
from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Published:
    """One model of a package.

    Attributes:
        module: As its authors wrote it.
        inputs: A dict of arrays, examples first.
        targets: A dict of arrays, examples first.
        call: `(module, inputs, train) -> outputs`.
        loss: `(outputs, targets) -> (values, weights, extra)`; the objective is their weighted mean
            plus the extra.
        sites: Submodule paths, each with the leaf of its value that is the activity, as
            `jax.tree_util.keystr` writes it: "" where the value is one array.
        tap: The leaf of the outputs that carries the error, written likewise.
        train_streams: Random streams of training, besides that of the parameters.
        state: Collections besides the parameters.
        without_gradient: Parameters behind the authors' own `stop_gradient`.
        tied: An embedding that is the readout too.
        last: Parameters whose error passes no linear map.
    """

    module: nn.Module
    inputs: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    call: Callable[[Any, Any, bool], Any]
    loss: Callable[[Any, Any], tuple[Any, Any, Any]]
    sites: Mapping[str, str]
    tap: str
    train_streams: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    without_gradient: tuple[str, ...] = ()
    tied: str = ""
    last: tuple[str, ...] = ()


BATCH, LENGTH, VOCABULARY, CLASSES, WIDTH = 4, 6, 17, 3, 32
LENGTHS = np.array([6, 4, 5, 2])  # three of the four sequences are padded


def bert():
    """`transformers`: masked language model, tied; padding is masked, the loss is of chosen tokens."""
    hub = pytest.importorskip("transformers.models.bert.modeling_flax_bert")
    config = hub.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
    )
    chosen = _real() & (np.arange(LENGTH) % 2 == 0)
    return Published(
        module=hub.FlaxBertForMaskedLMModule(config),
        inputs={
            "input_ids": np.where(chosen, VOCABULARY - 1, _tokens()),
            "attention_mask": _real().astype(np.int32),
            "token_type_ids": np.zeros_like(_tokens()),
            "position_ids": _positions(),
        },
        targets={"labels": _tokens(), "weights": chosen.astype(np.float32)},
        call=lambda module, inputs, train: module(
            **inputs, head_mask=None, deterministic=not train
        ),
        loss=lambda outputs, targets: (_cross_entropy(outputs.logits, targets), *_weights(targets)),
        sites={
            "bert/embeddings": "",
            "bert/encoder/layer/0": "[0]",
            "bert/encoder/layer/1": "[0]",
        },
        tap=".logits",
        train_streams=("dropout",),
        tied="bert/embeddings/word_embeddings/embedding",
        last=("cls/predictions/bias",),
    )


def gpt2():
    """`transformers`: causal language model, tied; its linear maps are a class of its own."""
    hub = pytest.importorskip("transformers.models.gpt2.modeling_flax_gpt2")
    config = hub.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        n_positions=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Published(
        module=hub.FlaxGPT2LMHeadModule(config),
        inputs={
            "input_ids": _tokens(),
            "attention_mask": _real().astype(np.int32),
            "position_ids": _positions(),
        },
        targets={"labels": _tokens()[:, 1:], "weights": _real()[:, 1:].astype(np.float32)},
        call=lambda module, inputs, train: module(**inputs, deterministic=not train),
        loss=lambda outputs, targets: (
            _cross_entropy(outputs.logits[:, :-1], targets),
            *_weights(targets),
        ),
        sites={"transformer/h/0": "[0]", "transformer/h/1": "[0]", "transformer/ln_f": ""},
        tap=".logits",
        train_streams=("dropout",),
        tied="transformer/wte/embedding",
    )


def bart():
    """`transformers`: encoder and decoder, two token inputs, tied."""
    hub = pytest.importorskip("transformers.models.bart.modeling_flax_bart")
    config = hub.BartConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=1,
    )
    return Published(
        module=hub.FlaxBartForConditionalGenerationModule(config),
        inputs={
            "input_ids": _tokens(),
            "attention_mask": _real().astype(np.int32),
            "decoder_input_ids": np.pad(_tokens()[:, :-1], ((0, 0), (1, 0))),
            "decoder_attention_mask": _real().astype(np.int32),
            "position_ids": _positions(),
            "decoder_position_ids": _positions(),
        },
        targets={"labels": _tokens(), "weights": _real().astype(np.float32)},
        call=lambda module, inputs, train: module(**inputs, deterministic=not train),
        loss=lambda outputs, targets: (_cross_entropy(outputs.logits, targets), *_weights(targets)),
        sites={"model/encoder/layers/0": "[0]", "model/decoder/layers/0": "[0]"},
        tap=".logits",
        train_streams=("dropout",),
        without_gradient=("final_logits_bias",),
        tied="model/shared/embedding",
    )


def vit():
    """`transformers`: Vision Transformer, classified by its first token."""
    hub = pytest.importorskip("transformers.models.vit.modeling_flax_vit")
    config = hub.ViTConfig(
        image_size=32,
        patch_size=16,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=CLASSES,
        hidden_dropout_prob=0.1,
    )
    return Published(
        module=hub.FlaxViTForImageClassificationModule(config),
        inputs={"pixel_values": _images()},
        targets={"labels": _classes()},
        call=lambda module, inputs, train: module(**inputs, deterministic=not train),
        loss=lambda outputs, targets: (_cross_entropy(outputs.logits, targets), None, None),
        sites={
            "vit/embeddings": "",
            "vit/encoder/layer/0": "[0]",
            "vit/encoder/layer/1": "[0]",
        },
        tap=".logits",
        train_streams=("dropout",),
        last=("classifier/kernel", "classifier/bias"),
    )


def resnet():
    """`transformers`: two basic blocks with batch statistics; `deterministic` says which are used."""
    hub = pytest.importorskip("transformers.models.resnet.modeling_flax_resnet")
    config = hub.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=CLASSES,
    )
    return Published(
        module=hub.FlaxResNetForImageClassificationModule(config),
        inputs={"pixel_values": _images()},
        targets={"labels": _classes()},
        call=lambda module, inputs, train: module(**inputs, deterministic=not train),
        loss=lambda outputs, targets: (_cross_entropy(outputs.logits, targets), None, None),
        sites={
            "resnet/embedder": "",
            "resnet/encoder/stages/0": "",
            "resnet/encoder/stages/1": "",
        },
        tap=".logits",
        state=("batch_stats",),
        last=("classifier/1/kernel", "classifier/1/bias"),
    )


def jax_resnet():
    """`jax-resnet`: takes the batch's statistics whenever `batch_stats` is mutable, not by argument."""
    hub = pytest.importorskip("jax_resnet")
    module = hub.ResNet(
        hub.ResNetBlock, stage_sizes=(1, 1), n_classes=CLASSES, hidden_sizes=(8, 16)
    )
    return Published(
        module=module,
        inputs={"images": _images()},
        targets={"labels": _classes()},
        call=lambda module, inputs, train: module(inputs["images"]),
        loss=lambda outputs, targets: (_cross_entropy(outputs, targets), None, None),
        sites={"layers_0": "", "layers_2": "", "layers_3": ""},
        tap="",
        state=("batch_stats",),
        last=("layers_5/kernel", "layers_5/bias"),
    )


def nano_moe():
    """`nano-moe-jax`: language model of experts; returns the loss that balances them."""
    hub = pytest.importorskip("nano_moe")
    config = hub.NanoMoEConfig(
        vocab_size=VOCABULARY, n_layers=2, n_heads=2, d_model=WIDTH, d_ff=64, block_size=LENGTH
    )
    return Published(
        module=hub.NanoMoE(config),
        inputs={"tokens": _tokens()},
        targets={"labels": _tokens()[:, 1:]},
        call=lambda module, inputs, train: module(inputs["tokens"], deterministic=not train),
        loss=lambda outputs, targets: (
            _cross_entropy(outputs[0][:, :-1], targets),
            None,
            config.aux_loss_coeff * outputs[1],
        ),
        sites={"block_0": "[0]", "block_1": "[0]"},
        tap="[0]",
        train_streams=("dropout",),
        last=("Dense_0/kernel", "Dense_0/bias"),
    )


MODELS = (bert, gpt2, bart, vit, resnet, jax_resnet, nano_moe)


def _cross_entropy(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets["labels"])


def _weights(targets):
    return targets["weights"], None


def _real():
    """True where a token is no padding."""
    return np.arange(LENGTH) < LENGTHS[:, None]


def _tokens():
    return np.random.default_rng(0).integers(1, VOCABULARY - 1, (BATCH, LENGTH), dtype=np.int32)


def _positions():
    return np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))


def _images():
    return np.random.default_rng(1).normal(size=(BATCH, 32, 32, 3)).astype(np.float32)


def _classes():
    return np.arange(BATCH, dtype=np.int32) % CLASSES
