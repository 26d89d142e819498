"""What must not be read by others, and how it is taken out of a text: the last net under logs, histories and answers.

Nothing relies on it: secrets are not put into texts in the first place. It is for what other people's programs say,
such as the URL in the error of an HTTP library.
"""

import re

REDACTED = "[redacted]"

_SECRETS = re.compile(
    r"""
    # parameters of a presigned URL, whatever stands between name and value: = or %3D, a JSON colon
    (?P<parameter> X-Amz-(?:Signature|Credential|Security-Token) (?: "?\s*[:=]\s*"? | %3D ) ) [^\s&"'<>]+
    # the credentials of a header; in prose no such long word follows
    | (?P<scheme> \b (?:Bearer|Basic) \s+ ) [A-Za-z0-9._~+/=-]{16,}
    | (?P<signature> \b (?:Credential|Signature) = ) [^\s,"'&]+
    # fields of JSON, of a form or of a repr
    | (?P<field> \b (?:access_token|refresh_token|id_token|client_secret|password|secret_key) ["']? \s* [:=] \s* ["']? )
      [^\s"'&,}]+
    # user:password@ of a URL
    | (?P<user> ://[^\s/:@]+: ) [^\s/@]+ (?=@)
    # a JSON Web Token, wherever it stands
    | (?P<jwt> \b ) eyJ[A-Za-z0-9_-]+ \. [A-Za-z0-9_-]+ \. [A-Za-z0-9_-]*
    """,
    re.VERBOSE | re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text with every secret of a known shape replaced; the name before it stays, so that one sees what it was."""
    return _SECRETS.sub(lambda found: next(filter(None, found.groups()), "") + REDACTED, text)
