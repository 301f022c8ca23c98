# Looks for a secret from inside a container: in everything that the user who runs it can read.
#
# Standard input: a line for each needle, its name and its bytes in hexadecimal, each byte XOR 0x5a, so that what is searched for is in nobody's hands but this
# process's, which leaves itself out. Arguments: `proc [UID...]` (all processes but those of these users) or `files FOLDER...` (the mount of each only).
# Prints `found NEEDLE PLACE` for each find and last `read BYTES`. Perl comes with git.
use strict;
use warnings;
no warnings 'portable';

my %needles;
while (my $line = <STDIN>) {
    my ($name, $hex) = split ' ', $line;
    $needles{$name} = pack('H*', $hex) ^ ("\x5a" x (length($hex) / 2));
}
my $keep = 512;
my $chunk = 4 * 1024 * 1024;
my $read = 0;

sub look {
    my ($bytes, $place) = @_;
    for my $name (keys %needles) {
        print "found $name $place\n" if index($$bytes, $needles{$name}) >= 0;
    }
}

sub stream {
    my ($path, $place) = @_;
    open(my $file, '<:raw', $path) or return;
    my $buffer = '';
    while (my $got = sysread($file, $buffer, $chunk, length $buffer)) {
        $read += $got;
        look(\$buffer, $place);
        substr($buffer, 0, length($buffer) - $keep) = '' if length $buffer > $keep;
    }
}

sub memory {
    my ($pid) = @_;
    open(my $maps, '<', "/proc/$pid/smaps") or return;
    my @regions;
    while (my $line = <$maps>) {
        if ($line =~ /^([0-9a-f]+)-([0-9a-f]+) (\S+)/) {
            push @regions, [hex $1, hex $2, $3, 0];
        } elsif ($line =~ /^(?:Rss|Swap):\s+(\d+)/) {
            $regions[-1][3] += $1;
        }
    }
    open(my $memory, '<:raw', "/proc/$pid/mem") or return;
    open(my $pagemap, '<:raw', "/proc/$pid/pagemap") or return;
    for my $region (@regions) {
        my ($from, $to, $mode, $resident) = @$region;
        next if $mode !~ /^r/ || !$resident || $from >= 2**62;
        sysseek($pagemap, ($from / 4096) * 8, 0);
        my $buffer = '';
        for (my $at = $from; $at < $to;) {
            # Pages that were never touched are left out: an agent reserves far more than it uses.
            my $pages = ($to - $at) / 4096;
            $pages = 1024 if $pages > 1024;
            my $entries = '';
            my $got = sysread($pagemap, $entries, $pages * 8);
            last unless $got;
            my $present = 0;
            for my $high (unpack '(x4 V)*', $entries) {
                $present = 1, last if $high & 0xc0000000;
            }
            if ($present) {
                sysseek($memory, $at, 0);
                my $bytes = sysread($memory, $buffer, $pages * 4096, length $buffer);
                if ($bytes) {
                    $read += $bytes;
                    look(\$buffer, sprintf('/proc/%d/mem', $pid));
                    substr($buffer, 0, length($buffer) - $keep) = '' if length $buffer > $keep;
                }
            } else {
                $buffer = '';
            }
            $at += $pages * 4096;
        }
    }
}

sub processes {
    my %left_out = map { $_ => 1 } @_;
    for my $pid (map { m{/(\d+)$} } glob '/proc/[0-9]*') {
        my $owner = (stat "/proc/$pid")[4];
        next if $pid == $$ || !defined $owner || $left_out{$owner};
        stream("/proc/$pid/$_", "/proc/$pid/$_") for qw(environ cmdline comm status);
        for my $open (glob "/proc/$pid/fd/*") {
            my $target = readlink $open or next;
            look(\$target, $open);
            # What only an open descriptor leads to: deleted files and memory files.
            stream($open, "$open -> $target") if $target =~ m{\(deleted\)$|^/memfd:};
        }
        memory($pid);
    }
}

sub folder {
    my ($path, $device) = @_;
    opendir(my $folder, $path) or return;
    for my $name (readdir $folder) {
        next if $name eq '.' || $name eq '..';
        my $below = $path eq '/' ? "/$name" : "$path/$name";
        look(\$below, $below);
        my @about = lstat $below or next;
        if (-l _) {
            my $target = readlink $below;
            look(\$target, "$below ->") if defined $target;
        } elsif (-d _) {
            folder($below, $device) if $about[0] == $device;
        } elsif (-f _) {
            stream($below, $below);
        }
    }
}

my $mode = shift @ARGV;
if ($mode eq 'proc') {
    processes(@ARGV);
} else {
    for my $root (@ARGV) {
        folder($root, (lstat $root)[0]);
    }
}
print "read $read\n";
