"""One vector of features an image, from any stage of any model.

Letters: B images, N tokens, C channels.
"""

import paddle

STAGE = "pre_logits"  # what the classifier gets: of XCiT the class token, of CrossViT those of both branches


@paddle.no_grad()
def pooled_features(model, images, stage=STAGE):
    """Features of images [B, in_chans, H, W] -> float32 tensor [B, C].

    Tokens and maps are averaged over their places; what CrossViT has twice, once a branch, is put side by side.

    Args:
        model: a Classification, in evaluation mode.
        stage: see `Classification.extract_feat`.

    Raises:
        ConfigError: for a stage that the model does not have; the text names all.
    """
    features = model.extract_feat(images, stage)
    parts = features if isinstance(features, tuple) else (features,)
    return paddle.concat([_vectors(part) for part in parts], axis=1).astype("float32")


def _vectors(features):
    """[B, C], [B, N, C] or [B, C, H, W] -> [B, C]"""
    return features.mean(axis={2: [], 3: [1], 4: [2, 3]}[features.ndim]) if features.ndim > 2 else features
