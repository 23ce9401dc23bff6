# A repository of small rpm packages in /srv/repo, for dnf and zypper, and both told of it alone.
work=$(mktemp -d)
mkdir -p /srv/repo

build() { # NAME
    rpmbuild -bb --quiet --define "_rpmdir /srv/repo" --define "_topdir $work/top" "$work/$1.spec"
}

package() { # NAME VERSION [REQUIRES]
    cat > "$work/$1.spec" <<SPEC
Name: $1
Version: $2
Release: 1
Summary: test package $1
License: MIT
BuildArch: noarch
AutoReqProv: no
${3:+Requires: $3}
%description
test package $1
%install
mkdir -p %{buildroot}/usr/share/$1
echo "$1 $2" > %{buildroot}/usr/share/$1/version
%post
echo "post \$1" >> /var/log/$1.log
%preun
echo "preun \$1" >> /var/log/$1.log
%files
/usr/share/$1
SPEC
    build "$1"
}

# Stands for the base system, which dpkg has put here: what scriptlets run in, and the release that dnf asks for.
cat > "$work/th-release.spec" <<SPEC
Name: th-release
Version: 41
Release: 1
Summary: stands for the base system
License: MIT
BuildArch: noarch
Provides: /bin/sh
Provides: /usr/bin/sh
Provides: system-release = 41
Provides: system-release(releasever) = 41
%description
stands for the base system
%files
SPEC
build th-release
package th-lib 1.0
package th-hello 1.0 th-lib
package th-hello 1.1 th-lib
package th-alone 2.0
createrepo_c -q /srv/repo
rpm --install --nodeps /srv/repo/noarch/th-release-41-1.noarch.rpm
rm -rf "$work"

for dir in /etc/yum.repos.d /etc/zypp/repos.d; do
    mkdir -p "$dir"
    rm -f "$dir"/*
    printf '[th]\nname=th\nbaseurl=file:///srv/repo\nenabled=1\ngpgcheck=0\n' > "$dir/th.repo"
done
