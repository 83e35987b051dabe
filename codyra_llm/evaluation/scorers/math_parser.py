"""MoRAM's scoring of NumGLUE: a reimplementation of its reduced Qwen2.5-Math parser.

The answer is the content of the last \\boxed{} (normalized), else the last number of the prediction, else the whole
text. It is correct if it equals the normalized reference as text (ignoring case), as a number (relative tolerance
1e-4; 100 times or a hundredth of the reference also counts), or as an arithmetic expression. Known quirks are kept:
further text with a number in it after the answer makes it wrong, "1,536" is read as 536.
"""

import ast
import math
import operator
import re
from collections.abc import Callable

NUMBER = re.compile(r"-?\d+\.?\d*")
WHOLE_FRACTION = re.compile(r"(-?(?:0|[1-9][0-9]*))/(-?(?:0|[1-9][0-9]*))")
ENCLOSED = re.compile(r"\[.*\]", re.DOTALL)
ARITHMETIC = re.compile(r"[\d\s.+*/()-]+")
REL_TOL = 1e-4

# Pattern and replacement, applied in this order.
NORMALISATION: tuple[tuple[str, str], ...] = (
    (r"\n|\\!|\\left|\\right", ""),
    (r"[td]frac", "frac"),
    (r"\\([{}])", r"\1"),
    (r"(?<=.)\\text\{.*?\}$", ""),  # a unit at the end
    (r"\^(?:\{\\circ\}|\\circ)", ""),
    (r"\\?\$|\\[()]", ""),
    (r"\\text\{(.*?)\}", r"\1"),
    (r"[xyz](?:=|\\in|\\to)", ""),
    (r"\\?%", ""),
    (r"(?<=[ {])\.", "0."),
    (r"infinity|(?<!\\)inf(?!ty)", r"\\infty"),
    (r"and|\\mathbf|\\mbox\{.*?\}|['\"]", ""),
    (r"(\d+)\.0*(\D|$)", r"\1\2"),
    (r"^\.", "0."),
    (r"^[^=]{0,2}=([^=]*)$", r"\1"),
    (r"\\sqrt(\w+)", r"\\sqrt{\1}"),
    (r" ", ""),
    (r"\\frac([^{])(?=\{)", r"\\frac{\1}"),
    (r"\\frac([^{])([^{])", r"\\frac{\1}{\2}"),
)
RULES = tuple((re.compile(pattern), replacement) for pattern, replacement in NORMALISATION)

OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def boxed(text: str) -> str:
    r"""Returns the content of the last \boxed{...} of a text, up to its matching brace; "" if there is none."""
    _, found, rest = text.rpartition("boxed")
    if not found or not rest.startswith("{"):
        return rest.split("$")[0].strip() if found else ""
    depth = 0
    for position, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[1:position]
    return rest[1:]


def normalise(text: str) -> str:
    """Returns an answer in a normalized notation: without units, currency and percent signs, spaces, trailing zeros."""
    text = text.strip().replace("\n", "").rstrip(".")
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    if "j" in text and "i" not in text:  # the imaginary unit
        text = text.replace("j", "i")
    return WHOLE_FRACTION.sub(r"\\frac{\1}{\2}", text) if WHOLE_FRACTION.fullmatch(text) else text


def extract_answer(prediction: str) -> str:
    """Returns the part of a prediction that is compared."""
    text = prediction.strip()
    if content := boxed(text):
        return normalise(content)
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else text


def as_number(text: str) -> float | None:
    """Returns a text as a number, None if it is none; thousands commas are ignored, a percentage is divided by 100."""
    text = text.replace(",", "")
    for candidate, unit in ((text, 1), (text.removesuffix("%").removesuffix("\\"), 100)):
        try:
            return float(candidate) / unit
        except ValueError:
            continue
    return None


def arithmetic(text: str) -> float | None:
    """Returns the value of numbers joined by + - * / and parentheses, None for anything else. Runs no code."""
    if not ARITHMETIC.fullmatch(text):
        return None

    def value(node: ast.AST) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.BinOp(left=left, op=op, right=right):
                return OPERATORS[type(op)](value(left), value(right))
            case ast.UnaryOp(op=op, operand=operand):
                return OPERATORS[type(op)](value(operand))
        raise ValueError

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, KeyError, ArithmeticError, RecursionError, MemoryError):
        return None


def bare(text: str) -> str:
    """Returns a text in lower case, without braces and parentheses."""
    return re.sub(r"[{}()]", "", text).lower()


def equal(answer: str, reference: str) -> bool:
    """True if two normalized answers are equal as text, number, equation or arithmetic expression."""
    if answer.strip().lower() == reference.strip().lower():
        return True
    number, target = as_number(answer), as_number(reference)
    if number is not None and target is not None:
        return any(math.isclose(number, target * scale, rel_tol=REL_TOL) for scale in (0.01, 1, 100))
    if not answer:
        return False
    if bare(answer) == bare(reference) or (ENCLOSED.fullmatch(answer) and bare(answer[1:-1]) == bare(reference)):
        return True
    for one, other in ((answer, reference), (reference, answer)):
        name, sign, right_side = one.partition("=")
        if sign and "=" not in right_side + other and len(name.strip()) <= 2:
            return equal(right_side, other)
    value, target = arithmetic(answer), arithmetic(reference)
    return value is not None and target is not None and math.isclose(value, target, rel_tol=REL_TOL)


def moram(prompt: str, prediction: str, reference: str) -> float:
    """Returns MoRAM's accuracy of one NumGLUE row, in percent."""
    return 100.0 * equal(extract_answer(prediction), normalise(reference))
