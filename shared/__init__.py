"""What all five models share: dataset download, tokenizers and plotting. Nothing else, ever."""


class UserError(Exception):
    """A mistake the user can mend, worded `what is wrong: what to do`.

    Every command prints it as one line on stderr, `error: what is wrong: what to do`,
    and exits with status 2.
    """
