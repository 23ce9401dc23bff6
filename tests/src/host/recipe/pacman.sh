# A repository of small pacman packages in /srv/repo, made by hand, and pacman told of it alone.
work=$(mktemp -d)
mkdir -p /srv/repo

package() { # NAME VERSION [DEPEND]
    dir=$work/$1-$2
    mkdir -p "$dir/usr/share/$1"
    echo "$1 $2" > "$dir/usr/share/$1/version"
    cat > "$dir/.PKGINFO" <<INFO
pkgname = $1
pkgbase = $1
pkgver = $2
pkgdesc = test package $1
url = http://localhost/
builddate = 1700000000
packager = Test Kit
size = 20
arch = any
${3:+depend = $3}
INFO
    cat > "$dir/.INSTALL" <<SCRIPT
post_install() { echo "install \$1" >> /var/log/$1.log; }
post_upgrade() { echo "upgrade \$1 from \$2" >> /var/log/$1.log; }
pre_remove() { echo "remove \$1" >> /var/log/$1.log; }
SCRIPT
    (
        cd "$dir"
        bsdtar -czf .MTREE --format=mtree \
            --options='!all,use-set,type,uid,gid,mode,time,size,sha256,link' .PKGINFO .INSTALL usr
        bsdtar -cf - .MTREE .PKGINFO .INSTALL usr | zstd -q > "/srv/repo/$1-$2-any.pkg.tar.zst"
    )
}

package th-lib 1.0-1
package th-hello 1.0-1 th-lib
package th-hello 1.1-1 th-lib
(
    cd /srv/repo
    repo-add -q th.db.tar.gz th-lib-1.0-1-any.pkg.tar.zst th-hello-1.1-1-any.pkg.tar.zst
)
rm -rf "$work"

# Only the section of options stays.
sed -i '/^\[options\]/!{/^\[/,$d}' /etc/pacman.conf
printf '\n[th]\nSigLevel = Optional TrustAll\nServer = file:///srv/repo\n' >> /etc/pacman.conf
