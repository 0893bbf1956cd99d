"""What the peers that run on PyTorch have in common."""

import numpy as np
import torch
import torch.nn.functional as F
from inputs import labels, random_images, random_weights, write_names


def run(args, build, save):
    """Do what the command line says.

    Args:
        build: name -> model.
        save: (model name, state dict, folder, file name without suffix) -> None, in every way of this peer.
    """
    if args.names:
        return write_names(args.names, {name: shapes_of(build(name)) for name in args.models})
    name, batch = args.models[0], args.batch
    model = fill(build(name))
    save(name, model.state_dict(), args.output, "weights")
    for size in args.sizes:
        _evaluate(model, args.output, size, batch)
    for size in args.train_sizes:
        images = _images(args.output, size, batch)
        gradients = _train(model.train(), images, args.output / f"train_logits_{_text(size)}.npy", args.double)
        state = model.state_dict()
        state.update(gradients)
        save(name, state, args.output, f"gradients_{_text(size)}")


def shapes_of(model):
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def fill(model):
    weights = random_weights(shapes_of(model))
    own = model.state_dict()
    model.load_state_dict({name: torch.as_tensor(weights[name]).to(own[name].dtype) for name in own})
    return model


def _text(size):
    return f"{size[0]}x{size[1]}"


def _images(output, size, batch):
    images = random_images(batch, size)
    np.save(output / f"images_{_text(size)}.npy", images)
    return torch.as_tensor(images)


def _evaluate(model, output, size, batch):
    model.eval()
    with torch.no_grad():
        logits = model(_images(output, size, batch))
    np.save(output / f"logits_{_text(size)}.npy", logits.numpy())


def _train(model, images, logits_path, double):
    """One step's forward and backward; saves the logits, returns {parameter's name: gradient}."""
    logits = model(images)
    np.save(logits_path, logits.detach().numpy())
    if double:
        logits = model.double()(images.double())
    model.zero_grad()
    F.cross_entropy(logits, torch.as_tensor(labels(len(images)))).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.float()
    return gradients
