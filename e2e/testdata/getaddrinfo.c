/* getaddrinfo NAME: what a program gets, an address a line, or why it gets none. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list, *a;
	char text[INET6_ADDRSTRLEN];
	int err;

	if (argc != 2)
		return 2;
	if ((err = getaddrinfo(argv[1], NULL, &hints, &list)) != 0) {
		fprintf(stderr, "%s\n", gai_strerror(err));
		return 1;
	}
	for (a = list; a; a = a->ai_next)
		puts(inet_ntop(a->ai_family, a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr :
			(void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr, text, sizeof text));
	return 0;
}
