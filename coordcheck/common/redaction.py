r"""Secrets taken out of messages, before they are kept in run files, reports and logs.

A build that fails tells why in its own words, and these may hold the address it loaded from, with its password, or the
header it sent. What is taken out is what is a secret by its form, or by the name that it stands under:

    user info of addresses        https://user:pw@host          -> https://***@host
    their query                   ?token=abc&page=2             -> ?token=***&page=2
    headers                       Authorization: Bearer abc     -> Authorization: ***
    values of secret names        password='abc', api_key: abc  -> password='***', api_key: ***
    tokens of known form          ghp_..., hf_..., AKIA...      -> ***
    blocks of private keys        -----BEGIN PRIVATE KEY-----   -> -----BEGIN PRIVATE KEY-----***

What only looks like one stays readable: paths, shapes, `key=3`, `KeyError: 'token'`, `n_tokens: 8`, `x@y`.
Nothing of this kind is complete: a secret without a name or a form of its own cannot be told from other text.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

GONE = "***"
_PROSE = (  # what follows a word such as "Bearer" or an option such as "--token" in a sentence
    r"(?:tokens?|auth\w*|scheme|headers?|credentials?|of|is|are|was|were|not|and|or|in|for|to|with|from|as|by|on|if|at|the"
    r"|an?|only|required|requires|must|should|needs?|can|cannot|missing|invalid|expected|expired|wrong|realm|format|type"
    r"|error|access|values?|strings?|option|argument|flag|given|takes|has|may|which|that|it)(?![\w-])"
)
_NO_SECRET = r"(?:none|true|false|null|nil|str|bytes|int|float|bool|string|any|optional)(?![\w-])|\*+|<|\{|\$|\.\.\."
_NAMES = (
    r"(?:pass(?:word|wd|phrase)|secret"
    r"|(?:api|access|secret|private|account|encryption|signing|shared[_-]?access)[_-]?key(?:[_-]?id)?"
    r"|(?:api|auth|access|refresh|session|security|client|bot|hub|hf|github|gitlab|private|oauth)[_-]?token)"
)
_IN_QUERIES = rf"(?:{_NAMES}|token|key|pwd|pass|pw|sig|signature|auth|authorization|credentials?|jwt|code)"
_HEADERS = (
    r"(?<![\w-])(?:(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|api-key|x-auth-token|x-amz-security-token"
    r"|x-goog-api-key|private-token|x-access-token|ocp-apim-subscription-key)"
)
_QUOTED = r"(?:[bfru]{0,2}'(?P<single>[^'\r\n]{1,4000})'?|[bfru]{0,2}\"(?P<double>[^\"\r\n]{1,4000})\"?)"
_VALUE = rf"(?:{_QUOTED}|(?P<bare>[^\s,;&)\]}}'\"]{{1,4000}}))"
_NO_VALUE = rf"(?![bfru]{{0,2}}['\"]?(?:{_NO_SECRET}))"
_FORMS = (
    r"gh[pousr]_[A-Za-z0-9]{20,255}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{20,255}",
    r"gl(?:pat|dt|rt|ptt|cbt)-[A-Za-z0-9_.-]{16,255}",  # GitLab
    r"hf_[A-Za-z0-9]{20,255}|api_org_[A-Za-z0-9]{20,255}",  # Hugging Face
    r"sk-(?=[A-Za-z_-]{0,255}[0-9])[A-Za-z0-9_-]{20,255}",  # OpenAI, Anthropic and others
    r"xox[a-z]-[A-Za-z0-9-]{8,255}|xapp-[A-Za-z0-9-]{8,255}",  # Slack
    r"(?:A3T[A-Z0-9]|AKIA|ASIA|AGPA|AIDA|AROA|ANPA|ANVA|AIPA)[A-Z0-9]{12,}",  # AWS
    r"AIza[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_-]{16,2000}|GOCSPX-[A-Za-z0-9_-]{16,255}",  # Google
    r"[srp]k_(?:live|test)_[A-Za-z0-9]{16,255}",  # Stripe
    r"SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,128}",  # SendGrid
    r"npm_[A-Za-z0-9]{30,}|pypi-AgE[A-Za-z0-9_-]{16,1000}",
    r"dop_v1_[a-f0-9]{32,}|dapi[a-f0-9]{32}|hv[sb]\.[A-Za-z0-9_-]{20,500}|r8_[A-Za-z0-9]{30,}",
    r"lin_api_[A-Za-z0-9]{20,}|ntn_[A-Za-z0-9]{20,}|tskey-[A-Za-z0-9-]{16,}",
    r"eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,8000}(?:\.[A-Za-z0-9_-]{0,2000})?",  # JSON web tokens
)
"""Tokens that tell by themselves what they are; letters are upper or lower case as they are written here."""
_BEGIN, _END = (rf"-----{word} [A-Z0-9 ]{{0,40}}PRIVATE KEY(?: BLOCK)?-----" for word in ("BEGIN", "END"))
_LINE_END = r"(?:\s|\\n|\\r)"  # also one that is written out
_KEY_BLOCKS = {
    rf"({_BEGIN})(?:(?!-----).){{0,20000}}{_END}": rf"\1{GONE}",
    # a block that was cut off at its end, or at its beginning: the lines that look like one
    rf"({_BEGIN})(?:{_LINE_END}*[A-Za-z0-9+/=]{{16,20000}})+": rf"\1{GONE}",
    rf"(?<![A-Za-z0-9+/=])(?:[A-Za-z0-9+/=]{{8,4000}}{_LINE_END}{{1,8}}){{1,1000}}({_END})": rf"{GONE}\1",
}
_PLACES = {
    # user info of addresses: everything before the @; a password may hold what ought to be escaped there
    r"(?<=://)[^\s/?#\"'<>@]{1,1000}(?:@[^\s/?#\"'<>@]{1,1000}){0,8}(?=@[\w\[.-])": GONE,
    r"(?<=//)[^\s/:@\"'<>]{0,200}:(?!\d{1,5}(?:[/?#]|\s|$))[^\s@\"'<>]{1,200}(?=@[\w\[.-])": GONE,
    rf"([?&;#](?:[\w.-]{{0,40}}[_.-])?{_IN_QUERIES}(?:=|%3D))(?!\*\*\*)[^\s&\"'<>#;,)\]]{{1,4000}}": rf"\1{GONE}",
    r"(hooks\.slack\.com/(?:services|workflows)/|discord(?:app)?\.com/api/webhooks/)[\w/-]{8,300}": rf"\1{GONE}",
    rf"({_HEADERS}\s{{0,4}}[:=]\s{{0,4}})(?!\s|\*\*\*)[^\r\n'\"\\]{{1,4000}}": rf"\1{GONE}",
    rf"(?<![\w-])(bearer\s{{1,4}})(?!{_PROSE}|\*\*\*|\.\.\.)[\w.~+/=:-]{{2,4000}}": rf"\1{GONE}",
    r"(?<![\w-])(basic\s{1,4})(?=[a-z0-9+/]{0,400}[0-9=])[a-z0-9+/]{8,400}={0,2}": rf"\1{GONE}",
}
_VALUES = (
    # headers as a mapping of Python or JSON shows them
    rf"{_HEADERS}['\"]\s{{0,4}}[:,=]\s{{0,4}}{_VALUE}",
    # under the name of a secret: after an equals sign, in quotes, or as the end of a clause behind a colon
    rf"{_NAMES}['\"]?\]?\s{{0,4}}=>?(?!=)\s{{0,4}}{_NO_VALUE}{_VALUE}",
    rf"{_NAMES}(?:['\"]?\s{{0,4}}:|['\"]\s{{0,4}},)\s{{0,4}}{_NO_VALUE}{_QUOTED}",
    rf"{_NAMES}['\"]?:(?![:/\\])[ \t]{{0,4}}(?!{_NO_SECRET}|{_PROSE})"
    r"(?P<bare>[^\s,;&)\]}'\"]{1,4000})(?=[,;&)\]}'\"]|\s*$|\s*[\r\n])",
    rf"(?<![\w-])--?(?:[\w-]{{0,40}}-)?(?:{_NAMES}|token)(?:\s{{1,4}}|['\"]\s{{0,4}},\s{{0,4}})"
    rf"(?!['\"]?-|{_PROSE}){_NO_VALUE}{_VALUE}",
    # a token or key that is neither a number nor a name: long, with letters and digits
    r"(?<![a-z])(?:token|key|auth)['\"]?\s{0,4}[=:]\s{0,4}"
    r"(?=['\"]?[a-z_+/=-]{0,400}[0-9])(?=['\"]?[0-9_+/=-]{0,400}[a-z])"
    r"(?:'(?P<single>[\w+/=-]{20,400})'|\"(?P<double>[\w+/=-]{20,400})\"|(?P<bare>[\w+/=-]{20,400})(?![\w.]))",
)


class _Patterns(NamedTuple):
    forms: re.Pattern[str]
    key_blocks: list[tuple[re.Pattern[str], str]]
    places: list[tuple[re.Pattern[str], str]]
    values: list[re.Pattern[str]]


@cache  # at first use: compiling takes longer than importing the package may
def _patterns() -> _Patterns:
    forms = "|".join(rf"(?<![A-Za-z0-9_-])(?:{form})(?![A-Za-z0-9])" for form in _FORMS)
    blocks, places = ([(_any_case(p), put) for p, put in table.items()] for table in (_KEY_BLOCKS, _PLACES))
    return _Patterns(re.compile(forms), blocks, places, [_any_case(pattern) for pattern in _VALUES])


def _any_case(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


def redacted(text: str) -> str:
    """The text without the secrets in it; what was redacted before stays as it is.

    >>> redacted("cannot clone https://me:hunter2@git.example.com/model?ref=main")
    'cannot clone https://***@git.example.com/model?ref=main'
    >>> redacted("KeyError: 'token' in vocabulary of n_tokens: 8")
    "KeyError: 'token' in vocabulary of n_tokens: 8"
    """
    known = _patterns()
    text = known.forms.sub(GONE, text)
    for pattern, put in (*(known.key_blocks if "PRIVATE KEY" in text.upper() else ()), *known.places):
        text = pattern.sub(put, text)
    for pattern in known.values:
        text = pattern.sub(_without_value, text)
    return text


def _without_value(found: re.Match[str]) -> str:
    """The match with `***` for its value, in the quotes that it had."""
    start, end = next(found.span(name) for name, value in found.groupdict().items() if value is not None)
    offset = found.start()
    return found[0][: start - offset] + GONE + found[0][end - offset :]
