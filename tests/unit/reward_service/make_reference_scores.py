"""Makes reference_scores.json: what the reward models' own packages give for the weights and pictures of published.py.

They want another environment than ours (old timm and transformers, and a Pillow that resizes columns first):

    pip install torch==2.13.0 transformers==4.46.3 timm==0.6.13 fairscale==0.4.13 ftfy regex pillow==11.3.0 numpy
    pip install --no-deps hpsv2==1.2.0 image-reward==1.5 torchvision

and open_clip's bpe_simple_vocab_16e6.txt.gz in the folder of hpsv2/src/open_clip, which lacks it; then

    python tests/unit/reward_service/make_reference_scores.py
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import torch

for name in ("clint", "clint.textui", "datasets", "ImageReward.ReFL", "clip"):  # for downloads and training
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
sys.modules["clint.textui"].progress = None
sys.modules["datasets"].load_dataset = None

from hpsv2.src.open_clip.model import CLIP  # noqa: E402
from hpsv2.src.open_clip.tokenizer import basic_clean, whitespace_clean  # noqa: E402
from hpsv2.src.open_clip.transform import image_transform  # noqa: E402
from ImageReward.ImageReward import MLP, ImageReward, _transform  # noqa: E402
from ImageReward.models.BLIP.med import BertConfig, BertModel  # noqa: E402
from ImageReward.models.BLIP.vit import VisionTransformer  # noqa: E402
from PIL import Image  # noqa: E402
from published import pictures, tokens, weights  # noqa: E402

SIZES = (
    (40, 64),
    (28, 28),
    (100, 60),
    (64, 134),
    (134, 64),
    (75, 200),
    (200, 75),
    (1, 40),
)  # of (40, 1) torch makes other pictures than Pillow
TEXTS = (
    "a “curly” sign, it’s ‘odd’",
    "Tom &amp; Jerry",
    "Tom &amp;amp; Jerry &lt;b&gt; &eacute;",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３",
    "a cafÃ© in MÃ¼nchen, â€œquotedâ€\x9d",
    "the ﬁnal e\u0301 of ΟΔΥΣΣΕΥΣ and İstanbul",
    "  two\n lines\tand \u00a0 blanks\u2028more ",
    "\x1b[31mred\x1b[0m \ufeffmark \x00",
    "a 🐈‍⬛ and 👩‍🚀, ❤️",
    "開店の看板「開」 в дождь",
    "very long, " * 9,
    "&",
)


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    skipped = ("position_ids", "attn_mask")
    return {name: list(value.shape) for name, value in model.state_dict().items() if not name.endswith(skipped)}


@torch.no_grad()
def hps() -> dict:
    model = CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 28, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14},
        text_cfg={"context_length": 16, "vocab_size": 60, "width": 128, "heads": 2, "layers": 2},
        output_dict=True,
    ).eval()
    own = shapes(model)
    model.load_state_dict(weights(own), strict=False)
    preprocess = image_transform(28, is_train=False, resize_longest_max=True)
    scores = []
    for size in SIZES:
        seen = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures(*size)])
        out = model(seen, tokens(16, 58, 59, 0))
        scores.append(torch.diagonal(out["image_features"] @ out["text_features"].T).tolist())
    return {"shapes": own, "scores": scores}


@torch.no_grad()
def image_reward() -> dict:
    model = ImageReward.__new__(ImageReward)
    torch.nn.Module.__init__(model)
    model.device, model.mean, model.std = "cpu", 0.16717362830052426, 1.0333394966054072
    model.blip, model.mlp = torch.nn.Module(), MLP(128)
    model.blip.visual_encoder = VisionTransformer(img_size=32, patch_size=16, embed_dim=192, depth=2, num_heads=3)
    config = BertConfig(
        vocab_size=60,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        add_cross_attention=True,
        encoder_width=192,
        layer_norm_eps=1e-12,
    )
    model.blip.text_encoder = BertModel(config=config, add_pooling_layer=False)
    model.eval()
    own = shapes(model)
    model.load_state_dict(weights(own), strict=False)
    text, preprocess = tokens(35, 1, 2, 0), _transform(32)
    scores = []
    for size in SIZES:
        seen = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures(*size)])
        scores.append(model.score_gard(text, (text != 0).long(), seen).squeeze(-1).tolist())
    return {"shapes": own, "scores": scores}


if __name__ == "__main__":
    cleaned = {text: whitespace_clean(basic_clean(text)).lower() for text in TEXTS}
    found = {"sizes": SIZES, "hps": hps(), "image_reward": image_reward(), "cleaned": cleaned}
    (Path(__file__).parent / "reference_scores.json").write_text(json.dumps(found, indent=1) + "\n")
