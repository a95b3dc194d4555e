"""The kernels in transformers' Trainer, through a callback.

python examples/hf_trainer.py [--model FOLDER] [--text FILE] [--steps N] [--stock]
"""

import tempfile

import tiny
import torch
import transformers

import llama_fast


def main(given=None):
    """Train; the losses and the model."""
    options = tiny.arguments(__doc__.splitlines()[0], given)
    model, tokenizer = tiny.model_and_tokenizer(options.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=folder,
                max_steps=options.steps,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                learning_rate=1e-3,
                bf16=options.bf16,
                use_cpu=not torch.cuda.is_available(),
                logging_steps=1,
                save_strategy="no",
                report_to=[],
            ),
            train_dataset=tiny.rows(tokenizer, options.text),
            callbacks=[] if options.stock else [llama_fast.PatchCallback()],
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


if __name__ == "__main__":
    print(main()[0])
