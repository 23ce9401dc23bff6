//! The line of shell that puts this very runner in place as another user, and becomes it.
//!
//! The same ideas as the client's script for the host, made simpler by what is known here: the machine, and that nothing is
//! sent behind the runner's bytes before it says READY, so that a reader may read ahead. No newline, backslash, `!` or
//! single quote: su hands it to the shell of the user, whichever that is.

/// Arguments: a marker, 32 hexadecimal digits for the directory, bytes of the runner, the user, the runner as the kernel
/// holds it, then the runner's flags. After the marker it says `kept` (nothing needs to be sent), `send`, `no DIRECTORY why`
/// or `failed why`.
pub(super) const SCRIPT: &str = concat!(
    "_m=$1 _d=$2 _n=$3 _p=$5 USER=$4 LOGNAME=$4;shift 5;export USER LOGNAME;unset LC_ALL;",
    "cd 2>/dev/null||cd /;set -f;",
    // Root may run what the kernel still holds, unless it lacks CAP_SYS_PTRACE: then nothing is sent or stored.
    "$_p --version >/dev/null 2>&1&&{ echo $_m kept;exec $_p --keep $@;};",
    "_u=$(umask);umask 077;",
    "_q(){ rm -f $_p/r;rmdir $_p;} 2>/dev/null;trap _q 0;trap \"exit 1\" 1 2 13 15;",
    // A directory is fit if a program can be run there.
    "for _b in /dev/shm /tmp /var/tmp /run \"$HOME\" -;do [ \"$_b\" = - ]&&exit 1;_p=$_b/.sortie-$_d;",
    "_y=$( (mkdir $_p&&:>$_p/r&&chmod 700 $_p/r&&$_p/r) 2>&1)&&break;_q;echo $_m no $_b $_y;done;",
    "echo $_m send;_r=\"head -c \";command -v head >/dev/null||_r=\"dd bs=1 count=\";",
    "_y=$({ $_r$_n>$_p/r;} 2>&1&&$_p/r --version 2>&1)||{ echo $_m failed $_b $_y;exit 1;};",
    "umask $_u;exec $_p/r --dir $_p $@",
);
