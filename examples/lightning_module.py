"""The kernels in a LightningModule.

python examples/lightning_module.py [--model FOLDER] [--text FILE] [--steps N] [--stock]
"""

import lightning
import tiny
import torch

import llama_fast


class LanguageModel(lightning.LightningModule):
    """A model of transformers, patched, and its loss."""

    def __init__(self, model, stock=False):
        super().__init__()
        self.model, self.losses = model.train(), []
        if not stock:
            print(llama_fast.patch(self.model))

    def training_step(self, batch, _):
        """The loss of one batch."""
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), 1e-3)


def main(given=None):
    """Train; the losses and the model."""
    options = tiny.arguments(__doc__.splitlines()[0], given)
    model, tokenizer = tiny.model_and_tokenizer(options.model)
    module = LanguageModel(model, options.stock)
    loader = torch.utils.data.DataLoader(tiny.rows(tokenizer, options.text), batch_size=2)
    trainer = lightning.Trainer(
        max_steps=options.steps,
        precision="bf16-mixed" if options.bf16 else "32-true",
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, loader)
    llama_fast.unpatch(model)
    return module.losses, model


if __name__ == "__main__":
    print(main()[0])
