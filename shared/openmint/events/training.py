"""The request to train a policy, and the facts of a job's life."""

from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field, JsonValue, model_validator

from openmint.events.base import Command, Fact, OpenModel, StrictModel
from openmint.identifiers import Digest, Name

MAX_INLINE_BYTES = 256 * 1024
"""Larger datasets go in by `openmint data put`: the bus carries names, not data."""

MAX_RANK = 256


class DatasetRef(StrictModel):
    """Where the rows are: inline, or in the store under their digest (`openmint data put`). Exactly one of the two."""

    rows: list[dict[str, JsonValue]] | None = Field(
        default=None,
        description="At most 256 KiB as JSON. For recipe sft OpenAI chat rows {messages: [...]} or {prompt, "
        "completion} rows; dpo {prompt, chosen, rejected}, texts or lists of chat messages; distillation {prompt or "
        "prompt_tokens, completion_tokens, teacher_tokens, teacher_logprobs}; weights {prompt or prompt_tokens, "
        "completion_tokens, weights}",
    )
    digest: Digest | None = Field(default=None, description="A dataset that this tenant has put before")

    @model_validator(mode="after")
    def _exactly_one(self) -> "DatasetRef":
        if (self.rows is None) == (self.digest is None):
            raise ValueError("give exactly one of rows and digest")
        return self


class AdapterSpec(StrictModel):
    """The shape of the LoRA adapter."""

    rank: int = Field(default=8, ge=1, le=MAX_RANK)
    alpha: float = Field(default=16.0, gt=0, le=4096, description="Scale is alpha / rank")
    targets: list[str] | None = Field(
        default=None, description="Last parts of module names, such as q_proj; null means every one the base allows"
    )


class OptimizerSpec(StrictModel):
    """Adam with decoupled weight decay, one state per policy."""

    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    clip_norm: float = Field(default=1.0, ge=0, description="Of this policy's gradient alone; 0 is off")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)


class TrainingSpec(StrictModel):
    """How long and in what portions to train."""

    steps: int = Field(default=60, ge=1, le=1_000_000, description="Optimizer steps")
    batch_rows: int = Field(default=8, ge=1, le=4096, description="Rows per optimizer step; a preference is one row")
    max_tokens_per_row: int = Field(default=512, ge=8, le=131072, description="Longer rows are refused at intake")
    checkpoint_every_steps: int = Field(default=50, ge=1)
    revision_at_steps: list[int] = Field(
        default_factory=list, description="Also make a revision at these steps; the last step always makes one"
    )
    seed: int = Field(default=0, ge=0, lt=2**63)


class LossSpec(StrictModel):
    """A loss other than the recipe's usual one, or settings other than the loss's defaults."""

    name: str | None = Field(default=None, max_length=80, description="null: the recipe's own loss")
    config: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=dict, max_length=16, description="The loss's settings by name, such as beta of dpo"
    )


class SimpleReward(StrictModel):
    """A reward by name, with the fields that it reads. Every reward is a number per completion, higher is better."""

    name: Literal["exact", "numeric", "format", "length", "label", "package", "endpoint", "composite"] = Field(
        description="exact: the trimmed completion is the row's answer; numeric: its last number is the answer's; "
        "format: it matches `pattern` from its start to its end; length: its number of characters is within "
        "`min_characters` and `max_characters`; label: the one of `labels` that it begins with is the answer; package: "
        "an installed package's reward; endpoint: an HTTP endpoint that the trainer's operator allows; composite: the "
        "weighted sum of `parts`"
    )
    pattern: str | None = Field(default=None, max_length=1000, description="For format: a regular expression")
    min_characters: int = Field(default=0, ge=0, description="For length")
    max_characters: int | None = Field(default=None, ge=0, description="For length; null: no limit")
    labels: list[str] = Field(default_factory=list, description="For label: what the completion may begin with")
    tolerance: float = Field(default=1e-6, ge=0, description="For numeric: the largest difference that counts as equal")
    entry: str | None = Field(
        default=None,
        max_length=200,
        description="For package: an entry point of group openmint.rewards; for endpoint: its name in the trainer's "
        "settings",
    )
    timeout_s: float = Field(default=30.0, gt=0, le=600, description="For package and endpoint: of one call")

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> "SimpleReward":
        if self.name == "format" and self.pattern is None:
            raise ValueError("reward format needs a pattern")
        if self.name == "label" and len(set(self.labels)) < 2:
            raise ValueError("reward label needs at least two different labels")
        if self.name in ("package", "endpoint") and not self.entry:
            raise ValueError(f"reward {self.name} needs an entry")
        if self.name == "length" and self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError("max_characters is below min_characters")
        return self


class RewardPart(SimpleReward):
    """One part of a composite reward, itself no composite."""

    weight: float = Field(default=1.0, ge=-1e6, le=1e6)

    @model_validator(mode="after")
    def _is_simple(self) -> "RewardPart":
        if self.name == "composite":
            raise ValueError("a part of a composite reward is itself no composite")
        return self


class RewardSpec(SimpleReward):
    """What a sampled completion is worth."""

    parts: list[RewardPart] = Field(default_factory=list, max_length=16, description="For composite")

    @model_validator(mode="after")
    def _has_parts(self) -> "RewardSpec":
        if (self.name == "composite") != bool(self.parts):
            raise ValueError("reward composite needs parts" if not self.parts else "only a composite has parts")
        return self


class RolloutSpec(StrictModel):
    """How recipe grpo samples and learns. `training.batch_rows` is the number of prompts per optimizer step."""

    group_size: int = Field(default=8, ge=2, le=256, description="Samples per prompt, compared with each other")
    max_new_tokens: int = Field(default=64, ge=1, le=32768, description="Of one turn; a longer sample is refused")
    environment: str | None = Field(
        default=None,
        max_length=200,
        description="An entry point of group openmint.environments; null: one turn per row {prompt, answer}, worth "
        "what `reward` says",
    )
    max_turns: int = Field(default=1, ge=1, le=64, description="After which an episode ends as it is")
    advantage: str = Field(
        default="grpo",
        max_length=40,
        description="grpo: (r - mean) / (std + 1e-4) of the group; centred, dr_grpo: r - mean; rloo: r - mean of the "
        "others",
    )
    loss: Literal["importance_sampling", "ppo", "cispo", "dro", "gspo", "gspo_token"] = "ppo"
    clip_low: float | None = Field(
        default=None, ge=0, le=1, description="Lower bound of the probability ratio; null: the loss's default"
    )
    clip_high: float | None = Field(
        default=None, ge=1, le=100, description="Upper bound of the probability ratio; null: the loss's default"
    )
    beta: float | None = Field(
        default=None, ge=0, description="For loss dro: the weight of its quadratic term; null: the loss's default"
    )
    kl_coef: float = Field(
        default=0.0, ge=0, le=100, description="The weight of the divergence from the base that is added to the loss"
    )
    kl_weight: float = Field(
        default=0.0, ge=0, le=100, description="How much of the log-ratio to the base is taken off the advantages"
    )
    max_staleness: int = Field(
        default=1,
        ge=0,
        le=16,
        description="Optimizer steps by which the sampling revision may be older than the weights that learn from it",
    )
    max_gap: float = Field(
        default=0.5,
        gt=0,
        description="Mean |trainer logprob - sampler logprob| of a step, nats, above which the job fails",
    )
    timeout_s: float = Field(default=600.0, gt=0, le=86400, description="Of the rollouts of one step")


class EvaluationSpec(StrictModel):
    """The metric half of the gate. Without held-out data the gate checks parity and effect alone."""

    held_out: DatasetRef | None = None
    scorer: Literal["label", "loss"] = Field(
        default="loss",
        description="label: share of rows whose completion is the likelier of `labels`; loss: mean nats per "
        "completion token, lower is better",
    )
    labels: list[str] = Field(default_factory=list, description="The completions to choose from, for scorer label")
    min_gain_over_base: float = Field(
        default=0.0, description="Score minus the base's (for loss: base's minus this) must be at least this"
    )
    max_loss_against_production: float | None = Field(
        default=None, ge=0, description="How much worse than the revision in production may be; null: no such rule"
    )

    @model_validator(mode="after")
    def _labels_fit_scorer(self) -> "EvaluationSpec":
        if self.scorer == "label" and len(set(self.labels)) < 2:
            raise ValueError("scorer label needs at least two different labels")
        return self


class PromotionSpec(StrictModel):
    """What happens when a revision of this job passes the gate."""

    alias: Name = "production"
    rule: Literal["on_pass", "manual"] = Field(default="manual", description="on_pass: the evaluator moves the alias")


class TrainRequested(Command):
    """Train a policy on a base model. The tenant is the subject's.

    Subject: openmint.train.requested.v1.<tenant>.<any token>.
    """

    area: ClassVar[str] = "train"
    verb: ClassVar[str] = "requested"

    policy: Name
    base: Name
    recipe: Literal["sft", "dpo", "distillation", "weights", "grpo"] = Field(
        default="sft",
        description="sft: learn the completions; dpo: prefer chosen to rejected answers, measured from the base; "
        "distillation: learn a teacher's likeliest tokens; weights: cross entropy with a weight per token, which may "
        "be negative; grpo: sample several completions of each prompt and learn from what they are worth",
    )
    dataset: DatasetRef
    adapter: AdapterSpec = AdapterSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    training: TrainingSpec = TrainingSpec()
    loss: LossSpec | None = Field(default=None, description="null: the recipe's own loss with its defaults")
    reward: RewardSpec | None = Field(default=None, description="For recipe grpo, unless its environment rewards")
    rollout: RolloutSpec | None = Field(default=None, description="For recipe grpo")
    evaluation: EvaluationSpec = EvaluationSpec()
    promotion: PromotionSpec = PromotionSpec()
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=200)
    tenant: Name | None = Field(default=None, description="If given, must equal the subject's tenant")

    @model_validator(mode="after")
    def _recipe_has_what_it_reads(self) -> "TrainRequested":
        if self.recipe == "grpo":
            if self.reward is None and (self.rollout is None or self.rollout.environment is None):
                raise ValueError("recipe grpo needs a reward, or a rollout.environment that gives rewards")
            if self.loss is not None:
                raise ValueError("recipe grpo takes its loss and the loss's settings from rollout, not from loss")
        elif self.reward is not None or self.rollout is not None:
            raise ValueError(f"recipe {self.recipe} reads neither reward nor rollout")
        return self


class Cause(OpenModel):
    """Why something did not work, for a person to read and a program to switch on."""

    code: str = Field(description="A code of openmint.errors, such as bad_dataset")
    detail: str
    field: str | None = Field(default=None, description="The field of the request that is wrong")
    fault: Literal["user", "server"] = "user"


class JobFact(Fact):
    """A fact about one job."""

    area: ClassVar[str] = "job"

    job_id: UUID
    policy: Name
    base: Name

    def subject_token(self) -> str:
        return str(self.job_id)


class JobAccepted(JobFact):
    """The job is committed: from here on it ends exactly once."""

    verb: ClassVar[str] = "accepted"

    recipe: str = "sft"
    idempotency_key: str | None = None


class JobRefused(Fact):
    """The request was not accepted; nothing of it is kept but this answer (and a dead letter if it can't be read)."""

    area: ClassVar[str] = "job"
    verb: ClassVar[str] = "refused"

    request_id: str = Field(description="The ce-id of the request, or <stream>-<seq> of a bare one")
    request_token: Name = Field(description="The last token of the request's subject")
    cause: Cause

    def subject_token(self) -> str:
        return self.request_token


class JobStarted(JobFact):
    """A trainer has claimed the job."""

    verb: ClassVar[str] = "started"

    fence: int
    resumed_from_step: int = Field(default=0, description="0 for a fresh start")


class JobProgressed(JobFact):
    """How far a job is. Soft state: published directly, may be lost."""

    verb: ClassVar[str] = "progressed"

    step: int
    steps: int
    loss: float | None = Field(default=None, description="Mean nats per trained token of the last step")
    tokens: int = Field(default=0, description="Trained tokens so far")
    tokens_per_s: float = 0.0
    eta_s: float | None = None
    metrics: dict[str, float] = Field(
        default_factory=dict, description="What else the recipe tells of the last step, such as accuracy of dpo"
    )
    reward: float | None = Field(default=None, description="Mean of the last step's samples")
    kl: float | None = Field(default=None, description="Mean log-ratio of sampled tokens to the base, nats")
    gap: float | None = Field(default=None, description="Mean |trainer logprob - sampler logprob|, nats")
    staleness: float | None = Field(default=None, description="Optimizer steps since the sampling revision")


class CheckpointSaved(Fact):
    """A checkpoint is complete and named in the catalogue."""

    area: ClassVar[str] = "checkpoint"
    verb: ClassVar[str] = "saved"

    checkpoint_id: UUID
    job_id: UUID
    policy: Name
    base: Name
    step: int
    checkpoint_bytes: int
    revision_id: UUID | None = Field(default=None, description="The revision that is wanted of it, if any")

    def subject_token(self) -> str:
        return str(self.checkpoint_id)


class JobCompleted(JobFact):
    """The job did all its steps."""

    verb: ClassVar[str] = "completed"

    steps: int
    tokens: int = 0
    final_loss: float | None = None


class JobFailed(JobFact):
    """The job ended without completing."""

    verb: ClassVar[str] = "failed"

    cause: Cause


class JobCancelled(JobFact):
    """The job was stopped on request."""

    verb: ClassVar[str] = "cancelled"

    cancelled_by: str = ""


JsonObject = dict[str, Any]
