"""`llama-fast export-kernels`: a kernel repository for the Hugging Face Hub."""

from __future__ import annotations

import argparse

from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_out


class ExportKernels(Command):
    """Writes the layers and attention as a repository for the Hub's `kernels` package."""

    name = "export-kernels"
    help = "write a kernel repository for the Hugging Face Hub"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        add_out(parser, "new folder", required=True)
        parser.add_argument(
            "--repo-id",
            metavar="OWNER/NAME",
            help="name on the Hub (default: llama-fast/llama-fast-layers)",
        )
        parser.add_argument("--force", action="store_true", help="replace a repository at DIR")

    def run(self, args: argparse.Namespace) -> int:
        """Write the repository, and print its files.

        Raises:
            ValueError: --repo-id has another form, or --force would replace something else.
            FileExistsError: --out exists.
            OSError: the folder cannot be written.
        """
        from llama_fast.integrations.hub_kernels import ATTENTION, repository

        repo_id = ATTENTION if args.repo_id is None else args.repo_id
        if not repository.is_repo_id(repo_id):
            raise ValueError(f"--repo-id: expected OWNER/NAME, got {repo_id!r}")
        if args.out.exists() and not args.force:
            raise FileExistsError(f"--out: {args.out} exists; --force replaces it")
        if args.out.exists() and not repository.is_repository(args.out):
            raise ValueError(f"--out: expected a kernel repository, got {args.out}")
        files = repository.write_repository(args.out, repo_id, force=args.force)
        for file in files:
            print(args.out / file)
        return ExitCode.OK


COMMAND = ExportKernels()
