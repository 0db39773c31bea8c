"""Train the reasoner: `python -m qeil_compile.models.reasoner.train --minutes 18 --threads 2 --out DIR`.

The folder is a loadable checkpoint from the first save on; the same command again goes on where the last
save stopped, with another budget if one is given. The learning rate follows a cosine over the budget, which is
minutes of training or steps.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
import typer

from qeil_compile.errors import InputError, ModelError
from qeil_compile.models.reasoner import checkpoint
from qeil_compile.models.reasoner.data import Batch, batches
from qeil_compile.models.reasoner.problems import generate, prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

STATE = "training.pt"
#: What may change when a run goes on: the cosine then follows the new budget.
_BUDGET = {"minutes", "steps", "save_seconds", "log_steps"}
#: Generated problems that the tokenizer is trained on, beside all given texts.
TOKENIZER_PROBLEMS = 10_000


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is: the budget is `steps`, or `minutes` where `steps` is 0."""

    minutes: float = 40.0
    steps: int = 0
    seed: int = 0
    batch_tokens: int = 2048
    rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.1
    clip: float = 1.0
    save_seconds: float = 120.0
    log_steps: int = 200

    def __post_init__(self) -> None:
        if self.steps < 0 or (not self.steps and self.minutes <= 0):
            raise InputError(f"budget: found {self.minutes} minutes and {self.steps} steps, expected one above 0")


class Trainer:
    """One run in one folder."""

    def __init__(self, settings: Settings, out: Path, texts: list[tuple[str, str]], device: str) -> None:
        """Goes on from `out` if a run was saved there. Raises `ModelError` if it was another."""
        self.settings, self.out, self.texts, self.device = settings, out, texts, device
        self.step, self.pool, self.seconds, self.tokens = 0, 0, 0.0, 0
        state = self._read_state()
        self.tokenizer = self._tokenizer(resumed=state is not None)
        if state is None:
            self.model = checkpoint.new_model(self.tokenizer.get_vocab_size(), settings.seed)
        else:
            self.model, _ = checkpoint.load(out)
        self.model.to(device)  # type: ignore[arg-type]  # the decorator in transformers hides self
        self.model.train()
        self.optimizer = _optimizer(self.model, settings)
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.pool, self.seconds, self.tokens = (state[k] for k in ("step", "pool", "seconds", "tokens"))

    @property
    def progress(self) -> float:
        """Part of the budget that is spent."""
        if self.settings.steps:
            return self.step / self.settings.steps
        return self.seconds / (60 * self.settings.minutes)

    def run(self) -> None:
        """Train until the budget is spent, and save."""
        settings, saved, losses = self.settings, self.seconds, []
        source = batches(self.tokenizer, self.texts, settings.seed, self.pool, settings.batch_tokens)
        started = time.perf_counter()
        while self.progress < 1:
            self.pool, batch = next(source)
            losses.append(self._learn(batch))
            now = time.perf_counter()
            self.seconds += now - started
            started = now
            if self.step % settings.log_steps == 0:
                mean = sum(losses) / len(losses)
                print(
                    f"step {self.step}  {self.seconds:.0f} s  {self.tokens / 1e6:.2f} M tokens  "
                    f"loss {mean:.4f}  rate {self.optimizer.param_groups[0]['lr']:.2e}",
                    flush=True,
                )
                losses.clear()
            if self.seconds - saved >= settings.save_seconds:
                self.save()
                saved, started = self.seconds, time.perf_counter()
        self.save()

    def _learn(self, batch: Batch) -> float:
        """One step; returns the mean loss over answer and question tokens as weighted."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * _schedule(self.progress, self.step, self.settings.warmup)
        tokens = torch.from_numpy(batch.tokens).to(self.device)
        weights = torch.from_numpy(batch.weights).to(self.device).flatten()
        # Padding stands behind the last token and attention looks back only: no mask is needed.
        logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits
        each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        loss = (each * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += int((batch.tokens != 0).sum())
        return float(loss.detach())

    def save(self) -> None:
        """Write the checkpoint and the state of the run, the state last."""
        checkpoint.save(self.out, self.model, checkpoint.wrap_tokenizer(self.tokenizer))
        state = {
            "settings": asdict(self.settings), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "pool": self.pool + 1, "seconds": self.seconds, "tokens": self.tokens,
        }  # fmt: skip
        partial = self.out / f"{STATE}.partial"
        torch.save(state, partial)
        partial.replace(self.out / STATE)

    def _read_state(self) -> dict[str, Any] | None:
        path = self.out / STATE
        if not path.is_file():
            return None
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        found, expected = state["settings"], asdict(self.settings)
        if any(found[name] != expected[name] for name in expected.keys() - _BUDGET):
            raise ModelError(f"{path}: found a run with {found}, expected {expected}; take another folder")
        return state

    def _tokenizer(self, resumed: bool) -> Tokenizer:
        from tokenizers import Tokenizer

        if resumed:
            return Tokenizer.from_file(str(self.out / "tokenizer.json"))
        problems = (generate("train", self.settings.seed, i) for i in range(TOKENIZER_PROBLEMS))
        pairs = [*self.texts, *((p.question, p.solution) for p in problems)]
        return checkpoint.train_tokenizer(prompt(question) + solution for question, solution in pairs)


def _optimizer(model: LlamaForCausalLM, settings: Settings) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98), fused=True)


def _schedule(progress: float, step: int, warmup: int) -> float:
    """Factor of the learning rate: a linear rise over `warmup` steps, then a cosine down to 2 %."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return cosine * min(1.0, (step + 1) / warmup)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint; an interrupted run there goes on.")],
    minutes: Annotated[float, typer.Option(help="Budget in minutes of training.")] = 40.0,
    steps: Annotated[int, typer.Option(help="Budget in steps instead of minutes.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")] = 0,
    gsm8k: Annotated[Path | None, typer.Option(help="train.jsonl of openai/grade-school-math, mixed in.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda" if torch.cuda.is_available() else "cpu",
    seed: Annotated[int, typer.Option(help="Seed of weights and problems.")] = 0,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a step.")] = 2048,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
) -> None:
    """Train the reasoner on generated word problems (and GSM8K's training text)."""
    if threads:
        torch.set_num_threads(threads)
    texts = checkpoint.read_gsm8k(gsm8k) if gsm8k else []
    settings = Settings(minutes=minutes, steps=steps, seed=seed, batch_tokens=batch_tokens, rate=rate)
    trainer = Trainer(settings, out, texts, device)
    size = sum(p.numel() for p in trainer.model.parameters())
    print(f"{size:,} parameters, {device}, step {trainer.step}", flush=True)
    trainer.run()


if __name__ == "__main__":
    typer.run(main)
