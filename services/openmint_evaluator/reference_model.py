"""Stock PEFT in fp32 over one base model. Runs in the reference child.

Nothing here is openmint's own arithmetic: what it says is what anybody with the exported folder would get.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import peft
import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from openmint.errors import BadAdapter


class ReferenceModel:
    """A base model in memory; adapters are put on for one call and taken off again."""

    def __init__(self, base_folder: Path) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            base_folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
        self._model.eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(base_folder, local_files_only=True)

    def describe(self) -> str:
        """The software that a reference rests on."""
        versions = f"PEFT {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
        return f"stock {versions}, float32"

    def base_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The base's logprobs of all tokens but the first of each sequence, one sequence after the other."""
        return self._logprobs(self._model, sequences)

    def adapter_logprobs(
        self, folder: Path, scales: Sequence[float], sequences: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """The same with an adapter on, for each factor on its strength.

        Raises: BadAdapter when stock PEFT can't load the folder.
        """
        try:
            adapted = PeftModel.from_pretrained(self._model, str(folder))
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            raise BadAdapter(f"stock PEFT can't load the exported folder: {str(error)[:300]}") from error
        adapted.eval()
        layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
        try:
            results: list[list[float]] = []
            for scale in scales:
                for layer in layers:
                    layer.set_scale("default", scale)
                results.append(self._logprobs(adapted, sequences))
            return results
        finally:
            self._model = adapted.unload()

    @staticmethod
    def _logprobs(model: torch.nn.Module, sequences: Sequence[Sequence[int]]) -> list[float]:
        values: list[float] = []
        with torch.inference_mode():
            for token_ids in sequences:
                tokens = torch.tensor([token_ids], dtype=torch.int64)
                logits_TV = model(input_ids=tokens).logits[0, :-1].float()
                logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
                picked_T = logprobs_TV.gather(1, tokens[0, 1:, None])[:, 0]
                values += [float(v) if math.isfinite(v) else math.nan for v in picked_T.tolist()]
        return values
