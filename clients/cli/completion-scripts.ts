/** Scripts that complete the command line, for each shell. They ask nobody: a process for each Tab would be slow. */

/** Words by what stands before them: a command's names ("memory set"), and those and an option ("memory list --order"). */
export type Tables = {
  readonly words: Readonly<Record<string, readonly string[]>>;
  readonly values: Readonly<Record<string, readonly string[]>>;
};

/** A function of a POSIX shell that prints the words for $1. */
const lookup = (name: string, table: Tables["words"]): string =>
  [
    `${name}() {`,
    '  case "$1" in',
    ...Object.entries(table).map(([path, words]) => `  '${path}') echo '${words.join(" ")}' ;;`),
    "  esac",
    "}",
    "",
  ].join("\n");

const lookups = ({ words, values }: Tables): string =>
  `${lookup("_moltwire_words", words)}\n${lookup("_moltwire_values", values)}`;

/** Of the words on the line those that name a command, in `at`; $cur is what is being written, $previous the word before it. */
const candidates = `  local candidates commands each
  candidates=$(_moltwire_values "$at $previous")
  [ -n "$candidates" ] || candidates=$(_moltwire_words "$at")`;

/** For bash 3.2 and later. Where nothing fits, names of files. */
export const bashScript = (tables: Tables): string => `# bash completion of moltwire: source <(moltwire completion bash)
${lookups(tables)}
_moltwire() {
  local cur previous at word index
  cur=\${COMP_WORDS[COMP_CWORD]}
  previous=\${COMP_WORDS[COMP_CWORD-1]}
  at=
  for ((index = 1; index < COMP_CWORD; index++)); do
    word="\${at:+$at }\${COMP_WORDS[index]}"
    [ -n "$(_moltwire_words "$word")" ] && at=$word
  done
${candidates}
  # Options only where one is begun, or there is nothing else.
  commands=
  for each in $candidates; do
    case $each in -*) ;; *) commands="$commands $each" ;; esac
  done
  case $cur in -*) ;; *) candidates=\${commands:-$candidates} ;; esac
  COMPREPLY=($(compgen -W "$candidates" -- "$cur"))
}
complete -o default -F _moltwire moltwire
`;

/** For zsh, whose completion has to be on (compinit). */
export const zshScript = (tables: Tables): string => `#compdef moltwire
# zsh completion of moltwire: source <(moltwire completion zsh), after compinit
${lookups(tables)}
_moltwire() {
  local cur=\${words[CURRENT]} previous=\${words[CURRENT-1]} at= word index
  for ((index = 2; index < CURRENT; index++)); do
    word="\${at:+$at }\${words[index]}"
    [ -n "$(_moltwire_words "$word")" ] && at=$word
  done
${candidates}
  commands=
  for each in \${=candidates}; do
    case $each in -*) ;; *) commands="$commands $each" ;; esac
  done
  case $cur in -*) ;; *) candidates=\${commands:-$candidates} ;; esac
  compadd -- \${=candidates} || _files
}
if [ "$funcstack[1]" = _moltwire ]; then _moltwire "$@"; else compdef _moltwire moltwire; fi
`;

const fishLookup = (name: string, table: Tables["words"]): string =>
  [
    `function ${name}`,
    "  switch $argv[1]",
    ...Object.entries(table).map(([path, words]) => `    case '${path}'\n      printf '%s\\n' ${words.join(" ")}`),
    "  end",
    "end",
    "",
  ].join("\n");

/** For fish 3 and later. */
export const fishScript = ({ words, values }: Tables): string => `# fish completion of moltwire
${fishLookup("__moltwire_words", words)}
${fishLookup("__moltwire_values", values)}
function __moltwire_candidates
  set -l tokens (commandline -opc)
  set -e tokens[1]
  set -l at ''
  for token in $tokens
    set -l word (string trim -- "$at $token")
    if test (count (__moltwire_words $word)) -gt 0
      set at $word
    end
  end
  set -l previous ''
  if test (count $tokens) -gt 0
    set previous $tokens[-1]
  end
  set -l values (__moltwire_values (string trim -- "$at $previous"))
  if test (count $values) -gt 0
    printf '%s\\n' $values
  else
    __moltwire_words $at
  end
end
complete -c moltwire -a '(__moltwire_candidates)'
`;
