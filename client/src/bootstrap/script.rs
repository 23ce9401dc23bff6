//! The shell script that puts the runner in place and becomes it, and the one line that starts it.
//!
//! It is read by the host's `sh`, after the user's login shell has passed it on. Every byte crosses the network before
//! anything else can, so each line here has its reason beside it. It must not contain a newline (tcsh), `!` (csh
//! history), a backslash (fish) or a single quote (it stands between two).
//!
//! What it says, always after the marker: `Linux x86_64 1 gzip -` (machine, whether it reads exactly, how the runner
//! may be packed, the SHA-256 of a cached runner that is fit to use), then at most one of `no DIRECTORY: why` a
//! directory, `got`, `none`, `damaged why`, `broken why`.
//!
//! What it reads: `PACKING BYTES SIZE SHA256`, then that many bytes, then its own directory name as a line: the proof
//! that nothing is missing, which needs no tool. Everything after that newline is the runner's.

/// The script. Arguments: two halves of the marker, 32 hexadecimal digits for the directory, seconds for the upload,
/// `-` or SHA-256 digests to look for in the cache (in one argument), then the runner's own flags.
pub const SCRIPT: &str = concat!(
    // Names begin with _ so that no exported variable of the login is changed on its way to the runner.
    "_m=$1$2 _d=$3 _t=\"timeout $4 \" _c=$5;shift 5;",
    // What the runner's commands shall find again. -f: nothing here is meant to be a glob.
    "_u=$(umask);umask 077;set -f;",
    // An exact reader takes one byte of two lines and leaves the rest. GNU head does, busybox's reads ahead; dd does
    // with fullblock, where it knows it.
    "for _r in \"head -c\" \"dd count=1 iflag=fullblock bs=\" \"\";do ",
    "[ \"$(echo ab|(${_r}1 >/dev/null 2>&1;read _x;echo $_x))\" = b ]&&break;done;_e=1;",
    // Without one: a head that reads ahead if nothing is sent ahead, or dd byte by byte.
    "[ \"$_r\" ]||if command -v head >/dev/null;then _r=\"head -c\" _e=0;else _r=\"dd bs=1 count=\";fi;",
    // A link that dies without a word must not leave a reader behind. Old busybox has another syntax: then without.
    "timeout 9 true 2>/dev/null||_t=;",
    "_z=raw;command -v gzip >/dev/null&&_z=gzip;",
    // A cached runner is fit if it and its directory are ours and nobody else may write there.
    "_h=$HOME/.cache/sortie _k=-;[ \"$_c\" = - ]||for _x in $_c;do ",
    "[ -O \"$_h/$_x\" ]&&[ -O \"$_h\" ]&&",
    "case $(ls -ld \"$_h\" \"$_h/$_x\") in drwx------*-rwx------*)_k=$_x;;esac;done;",
    "echo \"$_m $(uname -s -m) $_e $_z $_k\";",
    // read takes one byte at a time from a pipe, so that what follows the line stays where it is.
    "read _k _n _s _x||exit 1;",
    "[ $_k = cached ]&&{ umask $_u;exec \"$_h/$_x\" --keep \"$@\";};",
    // From here on a directory may be there, and must not stay, however this ends: only what was made is removed.
    "_q(){ rm -f \"$_p/r\";rmdir \"$_p\";} 2>/dev/null;",
    "trap _q 0;trap \"exit 1\" 1 2 13 15;",
    // Where others may write, a directory of ours could be moved away and another put in its place.
    "[ \"$_c\" = - ]&&_h=||{ mkdir -p \"$_h\" 2>/dev/null;",
    "case $(ls -ld \"$_h\" 2>/dev/null) in drwx------*)[ -O \"$_h\" ];;*)false;;esac;}||_h=;",
    "for _b in \"$_h\" \"$XDG_RUNTIME_DIR\" /dev/shm \"$TMPDIR\" /tmp /var/tmp \"$HOME\" -;do ",
    "case $_b in \"\")continue;;-)echo \"$_m none\";exit 1;;esac;",
    "_p=$_b/.sortie-$_d;",
    // mkdir fails on whatever exists, symbolic links too. An empty file runs as an empty script wherever programs may
    // be run. The zeros hold the space: once the runner is on its way it is too late to look elsewhere.
    "_y=$( (LC_ALL=C;export LC_ALL;mkdir \"$_p\"&&:>\"$_p/r\"&&chmod 700 \"$_p/r\"&&",
    "{ \"$_p/r\"||{ echo noexec;false;};}&&$_r$_s</dev/zero>\"$_p/r\") 2>&1)&&break;",
    "_q;echo \"$_m no $_b:\" $_y;done;",
    // 1<> writes over the zeros and gives no space back. In a function: bash 5.2 loses the 1 inside of $(…).
    "_w(){ if [ $_k = gzip ];then $_t$_r$_n|gzip -dc;else $_t$_r$_n;fi 2>&1 1<>\"$_p/r\";};",
    "_y=$(_w)||{ echo \"$_m damaged\" $_y;exit 1;};",
    "[ $_e = 1 ]||echo \"$_m got\";",
    "read _y&&[ \"$_y\" = $_d ]||exit 1;",
    // The first tool that answers decides; the runner hashes itself in any case.
    "for _y in sha256sum \"openssl dgst -sha256 -r\" \"shasum -a 256\";do ",
    "_y=$($_y<\"$_p/r\" 2>/dev/null);case $_y in $_x*)break;;?*)echo \"$_m damaged sha256 $_y\";exit 1;;esac;done;",
    // A shell that fails to exec runs no trap, and a runner that dies at once removes nothing: try it first.
    "_y=$(\"$_p/r\" --version 2>&1)||{ echo \"$_m broken\" $_y;exit 1;};",
    // Into the cache by one rename, so that nobody ever finds half a runner there.
    "[ \"$_b\" = \"$_h\" ]&&mv -f \"$_p/r\" \"$_h/$_x\"&&{ _q;umask $_u;exec \"$_h/$_x\" --keep \"$@\";};",
    "umask $_u;exec \"$_p/r\" --dir \"$_p\" \"$@\"",
);

/// The script as an argument vector, for transports that start programs themselves.
#[must_use]
pub fn argv(arguments: &[String]) -> Vec<String> {
    ["sh", "-c", SCRIPT, "sh"].map(String::from).into_iter().chain(arguments.iter().cloned()).collect()
}

/// The script as the one line that any login shell passes on. `arguments` are words of letters, digits and `-./:`,
/// spaces only inside the argument of digests, which is quoted.
#[must_use]
pub fn line(arguments: &[String]) -> String {
    let mut line = format!("exec sh -c '{SCRIPT}' sh");
    for argument in arguments {
        debug_assert!(
            argument.bytes().all(|b| b.is_ascii_alphanumeric() || b"-./: ".contains(&b)),
            "{argument}"
        );
        if argument.contains(' ') {
            line.push_str(&format!(" '{argument}'"));
        } else {
            line.push(' ');
            line.push_str(argument);
        }
    }
    line
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
