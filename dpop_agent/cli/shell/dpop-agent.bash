# What `dpop-agent completion bash` prints. dpop-agent itself says which words fit.

_dpop_agent() {
    local IFS=$'\n' answer word i
    COMPREPLY=()
    answer=$(
        COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT _ARGCOMPLETE=1 _ARGCOMPLETE_SHELL=bash \
            _ARGCOMPLETE_SUPPRESS_SPACE=1 _ARGCOMPLETE_IFS=$'\n' \
            _ARGCOMPLETE_COMP_WORDBREAKS=$COMP_WORDBREAKS \
            "${1/#\~\//$HOME/}" 8>&1 9>/dev/null >/dev/null 2>&1 </dev/null
    )
    case $? in
        0)
            [[ -z $answer ]] || while read -r word; do
                COMPREPLY+=("$word")
            done <<<"$answer"
            ;;
        10) compopt -o default ;; # a file
        11) # another command, after --
            for ((i = 1; i < COMP_CWORD; i++)); do
                [[ ${COMP_WORDS[i]} != -- ]] || break
            done
            if ((++i == COMP_CWORD)); then
                while read -r word; do
                    printf -v word %q "$word" # a file's name may be anything
                    COMPREPLY+=("$word")
                done < <(compgen -c -- "$2")
                compopt -o default
            elif declare -F _command_offset >/dev/null; then # bash-completion is loaded
                unset IFS
                _command_offset "$i"
            else
                compopt -o default
            fi
            ;;
    esac
}

complete -F _dpop_agent dpop-agent
