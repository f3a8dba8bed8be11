"""Learning from a reward: replies are drawn, judged, and made likelier if better than their group.

    instruction --> policy --> 8 replies --> rewards 1  1  0  1 ... --> advantages  0.5 0.5 -1.6 ...
                                                                              |
    loss: - advantage * how much likelier  +  kl * distance from the reference <

Group relative policy optimization (Shao et al. 2024): the replies to one instruction are compared
with one another, so that no second network must guess how well one could have done, as in PPO.

Two rewards. `checker` is the truth: the share of the asked facts that the story has, and, --grammar
times, how far it goes without a slip (instruction_data.py). `model` is what one has where there is
no checker: a reward model that is trained on preference pairs to score the chosen reply above the
rejected one (Bradley & Terry 1952, Ouyang et al. 2022). At best it is right about stories like
those in its pairs. Without --kl to keep the policy near the reference, the policy leaves these, and
finds replies that the reward model likes and nobody else does (reward hacking: Gao et al. 2023).
--reward model --kl 0 is the experiment, with the checker as judge; README.md has what came of it.

A reward model is mostly a language model with one output, for the score, in place of its read-out.
With the read-out goes what says which word was to be expected, and on a thousand pairs that differ
in a word a model as small as ours learned nothing like it (README.md). So this one keeps it: its
score is the implicit reward of DPO, beta (ln p - ln p_reference), of a model trained for that
(Rafailov et al. 2023, section 5).

Shapes: P prompts, G replies to each, N = P * G, T time, C channels, V vocabulary

    python finetune_grpo.py --checkpoint checkpoints/instruct/best.pt
    python finetune_grpo.py --checkpoint checkpoints/instruct/best.pt --reward model --kl 0
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path

import finetune_dpo as dpo
import finetune_instruct as sft
import generate
import instruction_data as instructions
import numpy as np
import torch
import train
import tuning
from finetune_instruct import judge, reply_to, text_of
from generate import HERE, Arguments, Model, command
from instruction_data import IGNORED, Example, Row
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from shared import UserError
from shared.utils.tokenizers import Tokenizer

PRESETS = {
    "tiny": dict(steps=2, prompts=2, group=2, examples=16, test=4, lr=0.0001),
    "small": dict(steps=60, prompts=8, group=8, examples=1000, test=200, lr=0.001),
}
DEFAULTS = dict(
    preset="small",
    reward="checker",
    kl=0.04,
    clip=0.2,
    grammar=0.5,
    weight_decay=0.0,
    seed=1337,
    dtype="auto",
)
SETTINGS = ("checkpoint", *DEFAULTS, *PRESETS["small"])
EVALUATIONS = 20  # lines of metrics.csv
COLUMNS = ("step", "seconds", "reward", "obeyed", "read", "kl", "tokens", "learning_rate")


@dataclass
class Run(sft.Run):
    """A run of finetune_instruct.py with a reference and, perhaps, a model of the reward."""

    reference: Model | None = None
    judge: Model | None = None
    since: list[list[float]] = field(default_factory=list)  # of each step since the last line


def parse_args() -> argparse.Namespace:
    parser = Arguments("Learn from a reward.", "finetune_grpo.py", DEFAULTS | PRESETS["small"])
    parser.section("data and start")
    parser.choice("--preset", "sets all that is not given", list(PRESETS))
    help = "a model of finetune_instruct.py or finetune_dpo.py (checkpoints/instruct/best.pt)"
    parser.text("--checkpoint", help)
    parser.choice("--reward", "who judges: the truth, or a model of it", ["checker", "model"])
    parser.number("--examples", int, "instructions, and pairs for the reward model", 8, 1e7)
    parser.number("--test", int, "held-out instructions for the report", 1, 1e6)
    parser.section("training (in brackets: preset small)")
    parser.number("--steps", int, "length: updates of the weights", 1)
    parser.number("--prompts", int, "instructions a step", 1, 1e5)
    parser.number("--group", int, "replies to each", 2, 1e5)
    help = "what a story without a slip is worth to the checker, beside 1 for the facts"
    parser.number("--grammar", float, help, 0, 1e3)
    parser.number("--kl", float, "how dear it is to depart from the reference", 0, 1e3)
    parser.number("--clip", float, "most that a probability may change in a step", 1e-3, 1)
    parser.number("--lr", float, "highest learning rate", 0, 10)
    parser.number("--weight-decay", float, "pull of the matrices towards 0", 0, 100)
    parser.number("--seed", int, "of instructions and replies", 0, 2**31)
    parser.section("output")
    parser.text("--out", "folder of the results (checkpoints/grpo/ in this model's folder)")
    parser.text("--resume", "go on from this checkpoint", metavar="CHECKPOINT")
    tuning.add_machine_flags(parser)
    return parser.parse()


def prepare(args: argparse.Namespace) -> Run:
    """Instructions, policy, reference and optimizer: new ones, or those to resume."""
    device = generate.pick_device(args.device)
    saved = tuning.resumed(args, device, "grpo", "finetune_grpo.py")
    out = Path(args.out or HERE / "checkpoints" / "grpo")
    args.checkpoint = args.checkpoint or (None if saved else "checkpoints/instruct/best.pt")
    args.lora = False
    sft.settle_start(args, saved and saved["grpo"], SETTINGS, DEFAULTS, PRESETS, 0.0)
    torch.manual_seed(args.seed)
    args.template = sft.template_of(Path(args.checkpoint), device)
    model, tokenizer = sft.starting_model(args, device, args.resume)
    dpo.without_dropout(model)
    reference, _, _ = generate.load_checkpoint(Path(args.checkpoint), device)
    reference.requires_grad_(False)
    data = instructions.load("tales", (args.examples, 1, args.test), sft.DEFAULTS["seed"])
    dtype = generate.pick_dtype(args.dtype, device)
    args.dtype = str(dtype).removeprefix("torch.")
    args.optimizer = "adamw"
    optimizer = train.new_optimizer(model, args)
    rows = {"train": prompts_by_length(data.train, tokenizer, args.template, model.context)}
    run = Run(args, data, rows, tokenizer, model, optimizer, device, dtype, out)
    run.reference = reference
    if saved:
        tuning.restore(run, saved)
        run.since = saved["since"]
    return run


def prompts_by_length(
    examples: list[Example], tokenizer: Tokenizer, template: str, context: int
) -> list[list[tuple[list[int], Example]]]:
    """Prompts in tokens, those of equal length together: they are read side by side.

    Those that leave no room for a reply are left out. Raises UserError if none is left.
    """
    groups: dict[int, list] = {}
    for example in examples:
        tokens = tokenizer.encode(instructions.prompt_of(template, *example[:2]))
        groups.setdefault(len(tokens), []).append((tokens, example))
    if min(groups) >= context:
        raise UserError(
            f"no prompt leaves room for a response in a context of {context} tokens: use a model "
            "with a longer one"
        )
    return [each for length, each in groups.items() if length < context]


# ---------------------------------------------------------------------------- the reward model


def train_reward_model(run: Run, batch_size: int = 8) -> Model:
    """A copy of the policy, trained for one pass over preference pairs to prefer the chosen ones.

    Its dice are its own: a run that is resumed gets the same one again.
    """
    args = run.args
    model, _, _ = generate.load_checkpoint(Path(args.checkpoint), run.device)
    dpo.without_dropout(model).train()
    sizes = (args.examples, max(8, args.examples // 5), 1)
    pairs = instructions.load("tales", sizes, args.seed, pairs=True)
    some, rest = (dpo.encode_pairs(part, run.tokenizer, args.template, model.context)
                  for part in pairs[:2])  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    steps = -(-len(some) // batch_size)
    plan = argparse.Namespace(steps=steps, lr=dpo.PRESETS["small"]["lr"])
    for step in tqdm(range(steps), "reward model", leave=False, disable=None):
        for group in optimizer.param_groups:
            group["lr"] = tuning.learning_rate(step, plan)
        loss = -F.logsigmoid(margins(run, model, some[step::steps])).mean()  # Bradley-Terry
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.requires_grad_(False)
    parts = [margins(run, model, rest[at : at + batch_size])
             for at in range(0, len(rest), batch_size)]  # fmt: skip
    right = (torch.cat(parts) > 0).float().mean()
    print(f"reward model: right about {right:.1%} of {len(rest)} validation pairs")
    return model


def margins(run: Run, model: Model, pairs: list[tuple[Row, Row]]) -> Tensor:
    """By how much the chosen reply scores above the rejected one: (B,)"""
    rows = [row for part in zip(*pairs, strict=True) for row in part]  # all chosen, all rejected
    chosen, rejected = scores_of(run, model, rows).view(2, -1)
    return chosen - rejected


def scores_of(run: Run, model: Model, rows: list[Row]) -> Tensor:
    """What the reward model makes of replies: beta (ln p - ln p_reference) of each, (N,)"""
    inputs, targets = instructions.collate(rows, True, run.device, run.model.context)
    with train.autocast(run):
        own = dpo.log_probs(model(inputs)[0], targets)
        with torch.no_grad():
            reference = dpo.log_probs(run.reference(inputs)[0], targets)
    return dpo.PRESETS["small"]["beta"] * (own - reference)


# -------------------------------------------------------------------------------- the training


def advantages_of(rewards: Tensor) -> Tensor:
    """How much better a reply is than its group, in standard deviations: (P, G) -> (P, G)

    Replies that are all alike teach nothing: 0.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-4)


def grpo_loss(
    new: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, real: Tensor, kl: float,
    clip: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss and KL (Shao et al. 2024, eq. 3 and 4), means over replies of means over their tokens.

    new, old, reference: ln p of each token (N, T), under the policy, under the policy that drew
    it, and under the reference; advantages (N,); real (N, T): which tokens are of a reply.
    """
    ratio = (new - old).exp()
    gain = advantages[:, None] * ratio
    least = torch.minimum(gain, advantages[:, None] * ratio.clamp(1 - clip, 1 + clip))
    apart = reference - new
    distance = apart.exp() - apart - 1  # at least 0, and on average the KL (Schulman 2020)
    lengths = real.sum(dim=1).clamp(min=1)
    mean = lambda each: ((each * real).sum(dim=1) / lengths).mean()  # noqa: E731
    return mean(kl * distance - least), mean(distance)


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """ln p of each target: logits (N, T, V), targets (N, T) -> (N, T), 0 where IGNORED"""
    nats = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return -nats.view_as(targets)


def draw(run: Run) -> tuple[list[Row], list[Example]]:
    """Replies of the policy to instructions of this step, a group to each: N rows"""
    args = run.args
    dice = random.Random(f"{args.seed} {run.step}")
    alike = dice.choices(run.rows["train"], [len(each) for each in run.rows["train"]])[0]
    chosen = [each for each in dice.choices(alike, k=args.prompts) for _ in range(args.group)]
    prompts = [tokens for tokens, _ in chosen]
    room = run.model.context - len(prompts[0])
    run.model.eval()
    seed = dice.randrange(2**31)
    replies = reply_to(run.model, run.tokenizer, prompts, room, 1.0, seed, len(prompts))
    run.model.train()
    rows = [
        Row(prompt + reply, len(prompt)) for prompt, reply in zip(prompts, replies, strict=True)
    ]
    return rows, [example for _, example in chosen]


def reward(run: Run, rows: list[Row], examples: list[Example]) -> tuple[Tensor, list[float]]:
    """The reward of each reply (N,); and what the checker says: shares that obey, that it reads."""
    found, obeyed, read = [], [], []
    for row, example in zip(rows, examples, strict=True):
        text, ended = text_of(run.tokenizer, row.tokens[row.prompt :])
        seen = instructions.check(text, example.asked)
        facts = np.mean(list(seen.right.values())) if ended else 0.0
        found.append(facts + run.args.grammar * (seen.read or fluency(text, example)))
        obeyed.append(seen.obeyed and ended)
        read.append(seen.read)
    rewards = torch.tensor(found, dtype=torch.float32, device=run.device)
    if run.judge is not None:
        with torch.no_grad():
            rewards = scores_of(run, run.judge, rows)
    return rewards, [float(np.mean(obeyed)), float(np.mean(read))]


def fluency(text: str, example: Example) -> float:
    """How much of a tale there is before the first slip; to stop short of one is no way out."""
    return instructions.before_a_slip(text) / max(len(text), len(example.response))


def train_step(run: Run) -> float:
    """One update of the weights. Returns the loss before it."""
    args = run.args
    # (1) learning rate
    for group in run.optimizer.param_groups:
        group["lr"] = tuning.learning_rate(run.step, args)

    # (2) batch: drawn from the policy, judged
    rows, examples = draw(run)
    rewards, checked = reward(run, rows, examples)
    advantages = advantages_of(rewards.view(args.prompts, args.group)).flatten()
    inputs, targets = instructions.collate(rows, True, run.device, run.model.context)

    # (3) forward, loss
    with train.autocast(run):
        new = token_log_probs(run.model(inputs)[0], targets)
        with torch.no_grad():
            reference = token_log_probs(run.reference(inputs)[0], targets)
    # One update for each batch: the policy that drew it is still the policy itself.
    real = targets != IGNORED
    loss, distance = grpo_loss(new, new.detach(), reference, advantages, real, args.kl, args.clip)

    # (4) backward, clip
    run.optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), 1.0).item()
    tuning.check_finite(run, loss.item(), norm)

    # (5) step
    run.optimizer.step()
    run.step += 1
    length = real.sum().item() / len(rows)
    run.since.append([rewards.mean().item(), *checked, distance.item(), length])
    return loss.item()


def evaluate(run: Run) -> None:
    """The means since the last line; the newest weights are kept."""
    lr = tuning.learning_rate(max(0, run.step - 1), run.args)
    if run.since:
        means = np.mean(run.since, axis=0).tolist()
        run.history.append([run.step, round(run.seconds, 2), *means, lr])
        tqdm.write(
            f"step {run.step:<5} reward {means[0]:.3f}  obeyed {means[1]:.1%}  read {means[2]:.1%}"
            f"  KL {means[3]:.4f} nats/token  {means[4]:.0f} tokens"
        )
        run.since = []
    save(run, "best.pt")
    write_results(run)


# --------------------------------------------------------------------------------- the results


def save(run: Run, name: str) -> None:
    sft.save(run, name, "grpo", SETTINGS, since=run.since)


def write_results(run: Run) -> None:
    """metrics.csv and loss.png, as far as the run has come."""
    tuning.write_table(run.out / "metrics.csv", COLUMNS, run.history)
    reward = f"reward, by the {run.args.reward} (right axis)"
    lines = {"stories without a slip": 4, reward: 2, "obeyed, says the checker": 3}
    title = f"GRPO, KL weight {run.args.kl:g}"
    tuning.draw_losses(run, lines, title, "share of the replies", reward)


def main() -> None:
    args = parse_args()
    train.keep_memory()
    run = prepare(args)
    print(
        f"{len(run.data.train):,} instructions | {generate.kind_of(run.model)}: "
        f"{args.prompts} x {args.group} replies a step, reward: {args.reward}, {run.device}, "
        f"{args.dtype}"
    )
    run.out.mkdir(parents=True, exist_ok=True)
    base = sft.base_of(Path(args.checkpoint), run.device)
    if not args.resume:
        train.set_aside(run.out)
        run.before = judge(run, run.model, base)
        print(f"before: {run.before}")
    if args.reward == "model":
        run.judge = train_reward_model(run)
    if stopped := tuning.train_all(run, train_step, evaluate, save, EVALUATIONS):
        tuning.stop(run, "finetune_grpo.py", stopped)
    print(f"before: {run.before}\nafter:  {judge(run, run.model, base)}")
    sft.say_how_to_go_on(run)


if __name__ == "__main__":
    command(main)
