import { RE2JS } from "re2js";
import { maxRememberedPatternWork } from "./limits.ts";

/** A pattern that cannot be used, and why. */
export class PatternError extends Error {}

/** White space of ECMA-262 (WhiteSpace and LineTerminator), and everything else, as insides of a class. */
const space = "\\t-\\r \\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}\\x{FEFF}";
const notSpace =
  "\\x00-\\x08\\x0E-\\x1F!-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{FEFE}\\x{FF00}-\\x{10FFFF}";
const anything = "\\x00-\\x{10FFFF}";
const notLineEnd = "[^\\n\\r\\x{2028}\\x{2029}]";

/** Long names of general categories (ECMA-262 table 69) that the engine knows by their short ones. */
const categories: Readonly<Record<string, string>> = {
  Letter: "L",
  Cased_Letter: "LC",
  Uppercase_Letter: "Lu",
  Lowercase_Letter: "Ll",
  Titlecase_Letter: "Lt",
  Modifier_Letter: "Lm",
  Other_Letter: "Lo",
  Mark: "M",
  Combining_Mark: "M",
  Nonspacing_Mark: "Mn",
  Spacing_Mark: "Mc",
  Enclosing_Mark: "Me",
  Number: "N",
  Decimal_Number: "Nd",
  digit: "Nd",
  Letter_Number: "Nl",
  Other_Number: "No",
  Symbol: "S",
  Math_Symbol: "Sm",
  Currency_Symbol: "Sc",
  Modifier_Symbol: "Sk",
  Other_Symbol: "So",
  Punctuation: "P",
  punct: "P",
  Connector_Punctuation: "Pc",
  Dash_Punctuation: "Pd",
  Open_Punctuation: "Ps",
  Close_Punctuation: "Pe",
  Initial_Punctuation: "Pi",
  Final_Punctuation: "Pf",
  Other_Punctuation: "Po",
  Separator: "Z",
  Space_Separator: "Zs",
  Line_Separator: "Zl",
  Paragraph_Separator: "Zp",
  Control: "Cc",
  Format: "Cf",
  Private_Use: "Co",
};

const shortCategories = new Set(Object.values(categories));

/** A `\p{…}` as the inside of a class. Only what both engines have from the same tables: categories, scripts, ASCII, Any. */
const property = (name: string, negated: boolean): string => {
  if (name === "Any") return negated ? "" : anything;
  if (name === "ASCII") return negated ? "\\x{80}-\\x{10FFFF}" : "\\x00-\\x7F";
  const [, kind, value] = /^(?:(gc|General_Category|sc|Script)=)?(.*)$/.exec(name)!;
  const script = kind === "sc" || kind === "Script";
  const known = script ? value! : (categories[value!] ?? value!);
  if (known.includes("=") || (!script && !shortCategories.has(known))) {
    throw new PatternError(`\\p{${name}} is not supported; general categories and scripts are`);
  }
  return `\\${negated ? "P" : "p"}{${known}}`;
};

const point = (code: number): string => `\\x{${code.toString(16).toUpperCase()}}`;

const escapes =
  /\\(?:u\{([0-9A-Fa-f]+)\}|u([dD][89abAB]..)\\u([dD][c-fC-F]..)|u(....)|x(..)|c([A-Za-z])|([pP])\{([^}]*)\}|(.))/suy;
const controls: Readonly<Record<string, number>> = { t: 9, n: 10, v: 11, f: 12, r: 13, "0": 0 };

type Escape = { readonly set?: string; readonly code?: number; readonly letter?: string; readonly end: number };

/** Reads the escape at `at` of a pattern that is known to be well-formed. */
const readEscape = (pattern: string, at: number): Escape => {
  escapes.lastIndex = at;
  const [whole, braced, high, low, unit, byte, control, p, name, letter] = escapes.exec(pattern)!;
  const end = at + whole.length;
  const hex = braced ?? unit ?? byte;
  if (hex !== undefined) return { code: Number.parseInt(hex, 16), end };
  if (high !== undefined) {
    return { code: ((Number.parseInt(high, 16) - 0xd800) << 10) + Number.parseInt(low!, 16) - 0xdc00 + 0x10000, end };
  }
  if (control !== undefined) return { code: control.charCodeAt(0) % 32, end };
  if (p !== undefined) return { set: property(name!, p === "P"), end };
  if (letter === "s" || letter === "S") return { set: letter === "s" ? space : notSpace, end };
  if (letter === "d" || letter === "D" || letter === "w" || letter === "W") return { set: `\\${letter}`, end };
  const known = controls[letter!];
  if (known !== undefined) return { code: known, end };
  return /[bBk1-9]/.test(letter!) ? { letter: letter!, end } : { code: letter!.codePointAt(0)!, end };
};

/** Writes the class that starts at `at`; ranges keep their dash, everything else becomes a code point or a set. */
const translateClass = (pattern: string, at: number): { readonly text: string; readonly end: number } => {
  const negated = pattern[at + 1] === "^";
  let end = at + (negated ? 2 : 1);
  let inside = "";
  let afterAtom = false;
  while (pattern[end] !== "]") {
    const dash: boolean = pattern[end] === "-" && afterAtom && pattern[end + 1] !== "]";
    if (dash) {
      inside += "-";
      end += 1;
    }
    const escaped = pattern[end] === "\\" ? readEscape(pattern, end) : undefined;
    // In a class `\b` is a backspace: the only letter that a well-formed one can hold.
    const code = escaped ? (escaped.letter === undefined ? escaped.code : 8) : pattern.codePointAt(end)!;
    inside += escaped?.set ?? point(code!);
    end = escaped ? escaped.end : end + String.fromCodePoint(code!).length;
    afterAtom = !dash;
  }
  if (inside === "") return { text: negated ? `[${anything}]` : `[^${anything}]`, end: end + 1 };
  return { text: `[${negated ? "^" : ""}${inside}]`, end: end + 1 };
};

const outsideEscape = (escaped: Escape): string => {
  if (escaped.set !== undefined) return escaped.set === "" ? `[^${anything}]` : `[${escaped.set}]`;
  if (escaped.code !== undefined) return point(escaped.code);
  if (escaped.letter === "b" || escaped.letter === "B") return `\\${escaped.letter}`;
  throw new PatternError("back-references are not supported: patterns are matched in linear time");
};

const translateGroup = (pattern: string, at: number): { readonly text: string; readonly end: number } => {
  if (pattern[at + 1] !== "?") return { text: "(?:", end: at + 1 };
  const rest = pattern.slice(at + 2, at + 4);
  if (/^(?:=|!|<=|<!)/.test(rest)) {
    throw new PatternError("look-ahead and look-behind are not supported: patterns are matched in linear time");
  }
  if (rest.startsWith("<")) return { text: "(?:", end: pattern.indexOf(">", at) + 1 };
  if (rest.startsWith(":")) return { text: "(?:", end: at + 3 };
  throw new PatternError("flags inside of a pattern are not supported");
};

/**
 * Rewrites a pattern of ECMA-262 (flag `u`, as JSON Schema 2020-12 §6.4 asks) in the syntax of RE2, with the meaning it has in ECMA-262:
 * `\s`, `.` and `[^]` differ. Throws PatternError for what is malformed or needs backtracking.
 */
export const translatePattern = (pattern: string): string => {
  try {
    new RegExp(pattern, "u");
  } catch (error) {
    throw new PatternError((error as Error).message.replace(/^Invalid regular expression: /, ""));
  }
  let out = "";
  for (let at = 0; at < pattern.length; ) {
    const char = String.fromCodePoint(pattern.codePointAt(at)!);
    if (char === "\\") {
      const escaped = readEscape(pattern, at);
      out += outsideEscape(escaped);
      at = escaped.end;
    } else if (char === "[" || char === "(") {
      const part = char === "[" ? translateClass(pattern, at) : translateGroup(pattern, at);
      out += part.text;
      at = part.end;
    } else {
      out += char === "." ? notLineEnd : char;
      at += char.length;
    }
  }
  return out;
};

/** A pattern ready to match. */
export type LinearRegex = {
  readonly test: (text: string) => boolean;
  /** Instructions of its program: what each character can cost. */
  readonly program: number;
  /** Distinct for distinct patterns: ajv keys its patterns by it. */
  readonly toString: () => string;
};

const compile = (source: string): RE2JS => {
  try {
    return RE2JS.compile(source);
  } catch (error) {
    const message = (error as Error).message;
    if (message.includes("repeat count")) throw new PatternError("repeats more than 1,000 times");
    throw new PatternError(message.replace(/^error parsing regexp: /, ""));
  }
};

/** What matchers remember is bounded for the process as a whole: there can be any number of contracts. */
const remembering = new Set<() => void>();
let rememberedWork = 0;

const remember = (work: number, forget: () => void): void => {
  remembering.add(forget);
  rememberedWork += work;
  if (rememberedWork <= maxRememberedPatternWork) return;
  rememberedWork = 0;
  for (const each of remembering) each();
  remembering.clear();
};

/** Building a program again costs about so many steps of matching, for each instruction. */
const rebuildWork = 20;

/** A part of a pattern that matches one character, or none. Each can be read in one way only, or this would itself backtrack. */
const atom =
  "(?:\\\\u(?:\\{[^}]*\\}|[0-9A-Fa-f]{4})|\\\\[pP]\\{[^}]*\\}|\\\\[^upP]|\\[(?:\\\\.|[^\\]\\\\])*\\]|[^\\\\[\\](){}*+?|^$])";

/**
 * Patterns that a backtracking engine matches in linear time too, as it has one place to start and nowhere to return to: `^`, atoms, at
 * most one repetition of an atom at the very end, `$`. They are most of what people write, and natively ten times as fast.
 */
const simple = new RegExp(`^\\^(?:${atom}(?:\\{\\d+\\})?)*(?:${atom}(?:[*+?]|\\{\\d+,\\d*\\}))?\\$?$`, "su");

/** Characters that the native engine looks at in the time of one step of the other. */
const nativeSpeed = 32;

/**
 * Compiles a pattern for an engine without backtracking. `spend` is told before each match how much work it can be (instructions ×
 * characters) and may throw. Throws PatternError for what `translatePattern` refuses, or a repeat over 1,000.
 */
export const linearRegex = (pattern: string, spend: (work: number) => void): LinearRegex => {
  const source = translatePattern(pattern);
  let matcher: RE2JS | undefined = compile(source);
  const program = matcher.programSize();
  const name = `/${pattern}/u`;
  if (simple.test(pattern)) {
    const native = new RegExp(pattern, "u");
    const test = (text: string): boolean => {
      spend(1 + text.length / nativeSpeed);
      return native.test(text);
    };
    return { test, program, toString: () => name };
  }
  const forget = () => {
    matcher = undefined;
  };
  const test = (text: string): boolean => {
    const work = program * ((matcher ? 1 : rebuildWork) + text.length);
    spend(work);
    const own = (matcher ??= compile(source));
    // A watchdog may stop the match half-way: what it left behind is then never used again.
    matcher = undefined;
    const found = own.test(text);
    matcher = own;
    remember(work, forget);
    return found;
  };
  return { test, program, toString: () => name };
};
