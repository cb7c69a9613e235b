package environ

// AppendVisible appends text of wsgi.errors with its control characters but tab
// and line feed escaped as "\x1b": web servers write it to their logs as it
// is, and terminals obey ESC.
func AppendVisible(dst, text []byte) []byte {
	const hex = "0123456789abcdef"
	for _, c := range text {
		if c < ' ' && c != '\n' && c != '\t' || c == 0x7f {
			dst = append(dst, '\\', 'x', hex[c>>4], hex[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}
