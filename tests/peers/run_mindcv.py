"""MindCV's side of the parity tests: random weights to a MindSpore checkpoint, logits, gradients."""

import mindspore
import numpy as np
from inputs import labels, parse_args, random_images, random_weights, write_names
from mindcv.models import create_model
from mindspore import Tensor, ops

TEMPERATURE = 0.03  # see random_weights


def shapes_of(model):
    return {name: list(value.shape) for name, value in model.parameters_dict().items()}


def fill(model):
    weights = random_weights(shapes_of(model), TEMPERATURE)
    for name, parameter in model.parameters_dict().items():
        parameter.set_data(Tensor(weights[name].astype("float32")))
    return model


def evaluate(model, output, size, batch):
    images = random_images(batch, size)
    model.set_train(False)
    np.save(output / f"images_{size[0]}x{size[1]}.npy", images)
    np.save(output / f"logits_{size[0]}x{size[1]}.npy", model(Tensor(images)).asnumpy())


def train(model, output, size, batch):
    """One step's forward and backward; saves the logits, and the gradients as a checkpoint."""
    images, targets = random_images(batch, size), Tensor(labels(batch).astype("int32"))

    def loss_and_logits(inputs):
        logits = model(inputs)
        return ops.cross_entropy(logits, targets), logits

    model.set_train(True)
    backward = mindspore.value_and_grad(loss_and_logits, None, model.trainable_params(), has_aux=True)
    (_, logits), gradients = backward(Tensor(images))
    where = f"{size[0]}x{size[1]}"
    np.save(output / f"images_{where}.npy", images)
    np.save(output / f"train_logits_{where}.npy", logits.asnumpy())
    state = dict(model.parameters_dict())
    state.update(zip([parameter.name for parameter in model.trainable_params()], gradients))
    entries = [{"name": name, "data": value} for name, value in state.items()]
    mindspore.save_checkpoint(entries, str(output / f"gradients_{where}.ckpt"))


def main():
    args = parse_args(__doc__)
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE, device_target="CPU")
    if args.names:
        return write_names(args.names, {name: shapes_of(create_model(name)) for name in args.models})
    model = fill(create_model(args.models[0]))
    mindspore.save_checkpoint(model, str(args.output / "weights.ckpt"))
    for size in args.sizes:
        evaluate(model, args.output, size, args.batch)
    for size in args.train_sizes:
        train(model, args.output, size, args.batch)


if __name__ == "__main__":
    main()
