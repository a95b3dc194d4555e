"""The kernels in TRL's SFTTrainer, through a callback; the loss is on the answers only.

TRL computes the loss and its metrics in chunks from the head's weight; the kernels do the rest.

python examples/trl_sft.py [--model FOLDER] [--steps N] [--stock]
"""

import tempfile

import datasets
import tiny
import torch
import trl

import llama_fast


def main(given=None):
    """Train; the losses and the model."""
    options = tiny.arguments(__doc__.splitlines()[0], given)
    model, tokenizer = tiny.model_and_tokenizer(options.model)
    sentences = tiny.TEXT.replace("\n", " ").split(". ")
    pairs = [{"prompt": s[: len(s) // 3], "completion": s[len(s) // 3 :]} for s in sentences]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(pairs * 4),
            args=trl.SFTConfig(
                output_dir=folder,
                max_steps=options.steps,
                per_device_train_batch_size=2,
                learning_rate=1e-3,
                max_length=128,
                bf16=options.bf16,
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
            ),
            callbacks=[] if options.stock else [llama_fast.PatchCallback()],
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


if __name__ == "__main__":
    print(main()[0])
