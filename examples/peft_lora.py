"""The kernels under LoRA adapters of PEFT.

python examples/peft_lora.py [--model FOLDER] [--text FILE] [--steps N] [--stock]
"""

import peft
import tiny
import torch

import llama_fast


def main(given=None):
    """Train the adapters and merge them; the losses and the merged model."""
    options = tiny.arguments(__doc__.splitlines()[0], given)
    model, tokenizer = tiny.model_and_tokenizer(options.model)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=targets)).train()
    if not options.stock:
        print(llama_fast.patch(model))
    rows = tiny.rows(tokenizer, options.text)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-2)
    losses = []
    for step in range(options.steps):
        batch = {key: torch.stack([rows[(2 * step + i) % len(rows)][key] for i in (0, 1)])
                 for key in rows[0]}  # fmt: skip
        with torch.autocast(model.device.type, torch.bfloat16, enabled=options.bf16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    llama_fast.unpatch(model)
    return losses, model.merge_and_unload()


if __name__ == "__main__":
    print(main()[0])
