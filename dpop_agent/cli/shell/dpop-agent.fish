# What `dpop-agent completion fish` prints. dpop-agent itself says which words fit.

function __dpop_agent_complete
    set -l typed (commandline -opc)
    set -l line (string join ' ' -- (string escape -- $typed) (commandline -ct))
    set -lx COMP_LINE $line
    set -lx COMP_POINT (string length -- $line)
    set -lx _ARGCOMPLETE 1
    set -lx _ARGCOMPLETE_SHELL fish
    set -lx _ARGCOMPLETE_SUPPRESS_SPACE 1
    set -lx _ARGCOMPLETE_IFS \n
    set -lx _ARGCOMPLETE_DFS \t
    set -l program (string replace --regex '^~/' $HOME/ -- $typed[1])
    set -l found ($program 8>&1 9>/dev/null >/dev/null 2>&1 </dev/null)
    switch $status
        case 0
            string join \n -- $found
        case 10
            set -l option (string match --regex -- '^--[^=]*=' (commandline -ct))
            set -l path (string replace --regex -- '^--[^=]*=' '' (commandline -ct))
            printf '%s\n' "$option"(__fish_complete_path $path)
        case 11 # another command, after --
            set -l behind (contains -i -- -- $typed)
            set -l rest (string escape -- $typed[(math $behind + 1)..])
            complete -C (string join ' ' -- $rest (commandline -ct))
    end
end

complete --command dpop-agent --no-files --keep-order --arguments '(__dpop_agent_complete)'
