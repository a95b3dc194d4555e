"""The kernels in a training loop of Hugging Face Accelerate.

python examples/accelerate_loop.py [--model FOLDER] [--text FILE] [--steps N] [--stock]
"""

import itertools

import accelerate
import tiny
import torch

import llama_fast


def main(given=None):
    """Train; the losses and the model."""
    options = tiny.arguments(__doc__.splitlines()[0], given)
    model, tokenizer = tiny.model_and_tokenizer(options.model)
    if not options.stock:
        print(llama_fast.patch(model))
    accelerator = accelerate.Accelerator(mixed_precision="bf16" if options.bf16 else "no")
    loader = torch.utils.data.DataLoader(tiny.rows(tokenizer, options.text), batch_size=2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    prepared, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    losses = []
    for batch in itertools.islice(itertools.cycle(loader), options.steps):
        loss = prepared(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    llama_fast.unpatch(model)
    return losses, model


if __name__ == "__main__":
    print(main()[0])
