"""What both stages are given: a model, prompts, a way to ask, and a folder to write to."""

import dataclasses

from moe_jax.common.files import local_path
from moe_jax.common.schema import FileName, Folder, FolderName
from moe_jax.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Inputs:
    """The model, the prompts and how they are asked.

    Attributes:
      model: a Hugging Face folder such as runs/sums/model, a .gguf file, or a known name; it needs
        experts.
      prompts: a .jsonl file, one JSON object a line: {"prompt": ..., "difficulty": 1, "answer":
        ...}; with "group" (a data set), Stage 1 permutes labels within groups only; with
        "explanation" (a right one), Stage 2 measures planted models on it.
      workdir: a folder to write to, such as runs/profile or runs/misroute.
      chat: true: ask an instruct model as it was trained to be asked: each prompt becomes the
        user's message in the model's own chat template (chat_template.jinja, or
        tokenizer_config.json), up to where the answer begins. The template's tokens are read and
        counted too. Both stages must ask in the same way; planted models read the same chats.
        false: prompts are read as they are in the file.
      system: the chat's system message, with --chat=true (none given: none, or the template's own);
        a place to ask for the delimiter.
    """

    model: FolderName
    prompts: FileName
    workdir: Folder
    chat: bool = False
    system: str = ""

    def validate(self, path: str = "") -> None:
        """Check what can be said before anything is loaded.

        Args:
          path: of this config in another one, for messages.

        Raises:
          UserError: the workdir is a file, or there is no chat for a system message.
        """
        at = f"{path}." if path else "--"
        workdir = local_path(self.workdir, f"{at}workdir")
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"{at}workdir={workdir}: is a file; name a folder")
        if self.system and not self.chat:
            raise UserError(f"{at}system without {at}chat=true: only a chat has a system message")
